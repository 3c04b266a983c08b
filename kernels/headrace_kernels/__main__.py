"""`python -m headrace_kernels`: says which paths work here, the one in use first."""

import headrace_kernels

used = headrace_kernels.path()
others = [path for path in headrace_kernels.paths() if path != used]
print(used, *others)
