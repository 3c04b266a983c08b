"""The compiled part. Functions of arrays raise ValueError for shapes and types that do not fit."""

import mlx.core as mx

class Layout:
    """What packed matrices are, one or several: the array that holds them knows only bytes."""

    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def matrices(self) -> int: ...
    @property
    def bits(self) -> int: ...
    @property
    def group_size(self) -> int: ...

def layout_of(
    weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
) -> Layout:
    """The layout of a matrix as `mlx.core.quantize` gives it, [outputs, inputs], or of several,
    [matrices, outputs, inputs].

    `bits` is 4 or 8, `group_size` 32, 64 or 128; scales and biases are float32, float16 or
    bfloat16, and stay so.
    """

def pack(weight: mx.array, scales: mx.array, biases: mx.array, layout: Layout) -> mx.array:
    """The matrices as the kernels read them: [lines, 64] of uint8, as many bytes or a few more."""

def multiply(x: mx.array, packed: mx.array, layout: Layout) -> mx.array:
    """x [..., inputs] times the matrix, transposed: [..., outputs], in the type of x.

    Each row of x is rounded to 8 bits, by the largest of every 32 numbers: off by 1/254 of that at
    most. The rest is exact but for the rounding of float32. A row with NaN or infinity gives NaN.
    """

def gather_multiply(x: mx.array, indices: mx.array, packed: mx.array, layout: Layout) -> mx.array:
    """As `multiply`, of each row of x, [..., inputs], and the matrix of its index, [...].

    Rows and indices are broadcast to one shape, which that of the result begins with. It reads each
    matrix once for all rows that have its index, in whatever order they are. An index beyond the
    last matrix gives some matrix, without an error.
    """

def take(indices: mx.array, packed: mx.array, layout: Layout) -> mx.array:
    """Rows of the matrix by their numbers, [..., inputs], in float32. For embeddings.

    Of several matrices the numbers of each go on after those of the last. A number beyond the last
    row gives some row, without an error.
    """

def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, of float32 arrays of one shape."""

def weigh(x: mx.array, factors: mx.array) -> mx.array:
    """2 ** ((x - the largest of its row) * the row's factor), of float32: unnormalised
    probabilities of logits, where the factor is log2(e) over the temperature.

    `x` is [rows, numbers], `factors` [rows, 1], positive. Off by at most 3e-7 and what comes of
    rounding the exponent to float32. Never less than 2**-126, which is also what NaN gives.
    """

def gelu(x: mx.array, by_tanh: bool) -> mx.array:
    """x times the share of a normal distribution below x, of a float32 array.

    `by_tanh`: what is often taken for it, (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2.
    Off by at most 4e-7 of x, as far as float32 tells.
    """

def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """x / sqrt(mean(x * x) + eps) * weight over the last axis, of float32 arrays."""

def rotate(x: mx.array, cos: mx.array, sin: mx.array, turned: int, neighbours: bool) -> mx.array:
    """A rotary embedding of x, [rows, heads, tokens, size], of float32 arrays.

    `cos` and `sin`, [rows, 1, tokens, size], have one for each number. Of each head the first
    `turned` numbers are turned: in pairs of neighbours ("traditional"), or of one from their first
    half and one from the second.
    """

def round_heads(x: mx.array) -> mx.array:
    """Keys or values, [..., size] of float32, as [..., size + 2] of int16.

    Whole numbers, and behind them what they are multiplied with, a float32 in the room of two.

    `size` is a multiple of 16. Each number is off by 1/65534 of the largest in its vector at most.
    A vector with NaN or infinity is NaN.
    """

def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    padding: mx.array | None = None,
    recent: mx.array | None = None,
) -> mx.array:
    """Softmax of the scaled scores times the values, causal, in float32.

    `queries`, [rows, query heads, queries, size], are of the last tokens of each row; keys and
    values are [rows, heads, tokens, size], with a multiple of 16 in a head; or both are as
    `round_heads` gives them. `padding`,
    [rows, 1, 1, tokens], is 0 but for the first tokens of a row that are none; `recent`,
    [queries, queries], is 0 where a query sees a key of these, and takes the place of what makes
    them causal.

    What a query gives depends on it and on what it sees, and on nothing else.
    """

def paths() -> list[str]:
    """The paths that work on this CPU, the fastest first."""

def path() -> str:
    """The path in use."""

def use(name: str) -> None:
    """Takes another path from now on. Raises ValueError for one that does not work here."""

def threads() -> int:
    """Threads that share the work, that of MLX's stream included."""

def set_threads(threads: int) -> None:
    """Has so many share the work; at first as many as there are cores that this process may use."""
