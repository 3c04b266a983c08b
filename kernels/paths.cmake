# The paths of this kind of CPU, and how each is compiled; for the package and for its tests.

# No result may depend on the instructions that are there, so a product and a sum are never made one
# rounding. Registers are as wide as the path says; vectors are only passed to inlined functions.
# With sanitizers -O3 takes minutes, and finds no more.
set(path_options $<IF:$<BOOL:${HEADRACE_SANITIZE}>,-O1,-O3> -fno-math-errno -fno-trapping-math)

function(headrace_add_paths target)
  set(src ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/src)
  target_compile_options(${target} PRIVATE -ffp-contract=off -Wno-psabi)
  macro(add_path name)
    target_sources(${target} PRIVATE ${src}/path_${name}.cpp)
    set_source_files_properties(${src}/path_${name}.cpp PROPERTIES
      COMPILE_OPTIONS "${path_options};${ARGN}")
  endmacro()

  add_path(portable)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_compile_definitions(${target} PRIVATE HEADRACE_X86)
    add_path(avx2 -mavx2 -mf16c)
    add_path(avxvnni -mavx2 -mf16c -mavxvnni)
    add_path(avx512vnni -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mf16c
      -mprefer-vector-width=512)
  elseif(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
    target_compile_definitions(${target} PRIVATE HEADRACE_ARM)
    add_path(neon -march=armv8.2-a+dotprod)
  endif()
endfunction()
