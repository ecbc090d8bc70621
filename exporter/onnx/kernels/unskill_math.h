// The mathematics of the operators, one definition for CPU and CUDA. It is that of custom_modeling/neuron_adjust.py and
// custom_modeling/key_space.py, operation by operation: built without fused multiply-add, decisions equal PyTorch's.
#ifndef UNSKILL_MATH_H
#define UNSKILL_MATH_H

#include <cstdint>

#ifdef __CUDACC__
#define UNSKILL_BOTH __host__ __device__ inline
#else
#define UNSKILL_BOTH inline
#endif

namespace unskill {

constexpr uint64_t kPrime = 2147483647u;  // 2^31 - 1
constexpr uint64_t kPosition = 1327217885u, kToken = 1732584193u, kNeuron = 271733879u, kFinal = 414899455u;

// x mod 2^31 - 1, for x below 2^62: the upper bits count as much as the lower ones.
UNSKILL_BOTH uint64_t residue(uint64_t x) {
  x = (x & kPrime) + (x >> 31);
  x = (x & kPrime) + (x >> 31);
  return x < kPrime ? x : x - kPrime;
}

// ((x + constant) mod p)^5 mod p.
UNSKILL_BOTH uint64_t scramble(uint64_t x, uint64_t constant) {
  // The sum is signed for the sake of ids below 0, which PyTorch takes to the residue from 0 to p - 1.
  int64_t remainder = static_cast<int64_t>(x + constant) % static_cast<int64_t>(kPrime);
  uint64_t y = static_cast<uint64_t>(remainder < 0 ? remainder + static_cast<int64_t>(kPrime) : remainder);
  uint64_t square = residue(y * y);
  return residue(residue(square * square) * y);
}

// The part of the hash that stands for one token.
UNSKILL_BOTH uint64_t draw_context(int64_t position_id, int64_t token_id) {
  return scramble(scramble(static_cast<uint64_t>(position_id), kPosition) + static_cast<uint64_t>(token_id), kToken);
}

// A uniform number in [0, 1) with 24 bits.
UNSKILL_BOTH float uniform_draw(uint64_t context, int64_t key) {
  uint64_t hashed = scramble(scramble(context + static_cast<uint64_t>(key), kNeuron), kFinal);
  return static_cast<float>(hashed >> 7) * 0x1p-24f;
}

// One neuron of Neuron Adjust. `standardisers`: (6, n), column `neuron` of it belongs to this one.
UNSKILL_BOTH float adjusted(float value, float threshold, const float* standardisers, int64_t n, int64_t neuron) {
  const float* column = standardisers + neuron;
  float scale_f = column[0], offset_f = column[n], scale_r = column[2 * n], offset_r = column[3 * n];
  float mu_r = column[4 * n], sd_r = column[5 * n];
  float zf = offset_f + value * scale_f;
  float zr = offset_r + value * scale_r;
  bool moved = zr * zr - zf * zf > threshold;
  return moved ? mu_r - zf * sd_r : value;
}

// Whether one dimension of a key vector is outside of a hypercube, or one coordinate of it outside of a region; a NaN in
// any of the three is not.
UNSKILL_BOTH bool outside(float key, float lower, float upper) { return key < lower || key > upper; }

// Whether a vector of n numbers is inside any of `count` bounds, (count, 2, n), lower and upper.
UNSKILL_BOTH bool inside_any(const float* vector, const float* bounds, int64_t n, int64_t count) {
  for (int64_t each = 0; each < count; ++each) {
    const float *lower = bounds + 2 * each * n, *upper = lower + n;
    // Nearly every vector is outside of nearly all bounds, and most of them show it within a few dimensions.
    int64_t i = 0;
    while (i < n && !outside(vector[i], lower[i], upper[i])) ++i;
    if (i == n) return true;
  }
  return false;
}

}  // namespace unskill

#endif
