// Makes of MLX's quantised matrices what the kernels read, and gives rows of them back.
#pragma once

#include "format.h"

namespace headrace {

// A matrix [outputs, inputs] in MLX's affine quantisation. Scales and biases are of the format's
// type.
struct Matrix {
  const uint8_t* weights;
  const uint8_t* scales;
  const uint8_t* biases;
  int64_t inputs;
  int64_t outputs;
};

// Packs one block, `Format::block_bytes` long. Outputs beyond the last are zeros.
void pack_block(const Format& format, const Matrix& matrix, int64_t block, uint8_t* to);

// One output's weights as they are multiplied with, of `inputs` numbers.
void unpack_row(const Format& format, const uint8_t* blocks, int64_t inputs, int64_t output,
                float* to);

// Where the blocks of a packed matrix begin: a copy may lie elsewhere on its line.
const uint8_t* blocks_in(const uint8_t* packed);

// Writes the header of a matrix that is packed here, and gives where its blocks go.
uint8_t* begin_packed(uint8_t* packed);

}  // namespace headrace
