// CUDA kernels and the functions that start them. Each takes device pointers and a stream, starts its work there and
// comes back at once: nothing is copied to the host and nothing waited for. They return a cudaError_t as int, 0 on
// success, and are exported with C names, so that a program without ONNX Runtime can use them too.
#ifndef UNSKILL_CUDA_H
#define UNSKILL_CUDA_H

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "unskill_math.h"

namespace unskill {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 65535;  // the loops of the kernels stride over what is more

inline unsigned blocks_for(int64_t count) { return static_cast<unsigned>(std::min(count, kMostBlocks)); }
inline unsigned blocks_of_threads(int64_t count) { return blocks_for((count + kThreads - 1) / kThreads); }

__global__ void neuron_draws_kernel(const int64_t* position_ids, const int64_t* token_ids, const int64_t* keys,
                                    float* draws, int64_t tokens, int64_t neurons) {
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < tokens * neurons; i += stride) {
    int64_t token = i / neurons;
    draws[i] = uniform_draw(draw_context(position_ids[token], token_ids[token]), keys[i % neurons]);
  }
}

// Reads `pre_activation` and writes `output`, which already holds a copy of it.
__global__ void neuron_adjust_kernel(const float* pre_activation, const int64_t* index, const float* threshold,
                                     const float* standardisers, float* output, int64_t tokens, int64_t width,
                                     int64_t neurons) {
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < tokens * neurons; i += stride) {
    int64_t neuron = i % neurons, place = index[neuron];
    // The host can't see the indices without waiting for the device; at least nothing is written out of bounds.
    if (place < 0 || place >= width) continue;
    int64_t at = i / neurons * width + place;
    output[at] = adjusted(pre_activation[at], threshold[i], standardisers, neurons, neuron);
  }
}

// One block for each token; its threads share the dimensions and leave a hypercube together.
__global__ void key_space_detect_kernel(const float* key, const float* bounds, bool* hit, int64_t tokens, int64_t width,
                                        int64_t cubes) {
  for (int64_t token = blockIdx.x; token < tokens; token += gridDim.x) {
    const float* vector = key + token * width;
    bool found = false;
    for (int64_t cube = 0; cube < cubes && !found; ++cube) {
      const float *lower = bounds + 2 * cube * width, *upper = lower + width;
      int out = 0;
      for (int64_t first = 0; first < width && !out; first += blockDim.x) {
        int64_t i = first + threadIdx.x;
        out = __syncthreads_or(i < width && outside(vector[i], lower[i], upper[i]));
      }
      found = !out;
    }
    if (threadIdx.x == 0) hit[token] = found;
  }
}

// One block for each token; its threads share the dimensions, one direction at a time, and the first of them compares.
// The block has kThreads threads, a power of two, and shared memory for `count` coordinates.
__global__ void region_detect_kernel(const float* key, const float* directions, const float* limits, bool* hit,
                                     int64_t tokens, int64_t width, int64_t count, int64_t regions) {
  extern __shared__ float coordinates[];
  __shared__ float sums[kThreads];
  for (int64_t token = blockIdx.x; token < tokens; token += gridDim.x) {
    const float* vector = key + token * width;
    for (int64_t each = 0; each < count; ++each) {
      const float* direction = directions + each * width;
      float sum = 0;
      for (int64_t i = threadIdx.x; i < width; i += blockDim.x) sum += vector[i] * direction[i];
      sums[threadIdx.x] = sum;
      __syncthreads();
      for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
      }
      if (threadIdx.x == 0) coordinates[each] = sums[0];
      __syncthreads();  // before the next sums take the place of these
    }
    if (threadIdx.x == 0) hit[token] = inside_any(coordinates, limits, count, regions);
  }
}

}  // namespace unskill

#define UNSKILL_LAUNCHER extern "C" __attribute__((visibility("default"))) int

// position_ids, token_ids: (tokens,); keys: (neurons,); draws: (tokens, neurons).
UNSKILL_LAUNCHER unskill_cuda_neuron_draws(const int64_t* position_ids, const int64_t* token_ids, const int64_t* keys,
                                           float* draws, int64_t tokens, int64_t neurons, void* stream) {
  if (tokens * neurons == 0) return cudaSuccess;
  unsigned blocks = unskill::blocks_of_threads(tokens * neurons);
  unskill::neuron_draws_kernel<<<blocks, unskill::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      position_ids, token_ids, keys, draws, tokens, neurons);
  return cudaGetLastError();
}

// pre_activation, output: (tokens, width), apart from each other; index: (neurons,); threshold: (tokens, neurons);
// standardisers: (6, neurons). An index out of range is passed over.
UNSKILL_LAUNCHER unskill_cuda_neuron_adjust(const float* pre_activation, const int64_t* index, const float* threshold,
                                            const float* standardisers, float* output, int64_t tokens, int64_t width,
                                            int64_t neurons, void* stream) {
  if (tokens * width == 0) return cudaSuccess;
  cudaStream_t queue = static_cast<cudaStream_t>(stream);
  size_t bytes = static_cast<size_t>(tokens * width) * sizeof(float);
  cudaError_t copied = cudaMemcpyAsync(output, pre_activation, bytes, cudaMemcpyDeviceToDevice, queue);
  if (copied != cudaSuccess || neurons == 0) return copied;
  unsigned blocks = unskill::blocks_of_threads(tokens * neurons);
  unskill::neuron_adjust_kernel<<<blocks, unskill::kThreads, 0, queue>>>(pre_activation, index, threshold,
                                                                        standardisers, output, tokens, width, neurons);
  return cudaGetLastError();
}

// key: (tokens, width); bounds: (cubes, 2, width); hit: (tokens,).
UNSKILL_LAUNCHER unskill_cuda_key_space_detect(const float* key, const float* bounds, bool* hit, int64_t tokens,
                                               int64_t width, int64_t cubes, void* stream) {
  if (tokens == 0) return cudaSuccess;
  unskill::key_space_detect_kernel<<<unskill::blocks_for(tokens), unskill::kThreads, 0,
                                     static_cast<cudaStream_t>(stream)>>>(key, bounds, hit, tokens, width, cubes);
  return cudaGetLastError();
}

// key: (tokens, width); directions: (count, width); limits: (regions, 2, count); hit: (tokens,). Thousands of
// directions do not fit into a block's shared memory and are an error.
UNSKILL_LAUNCHER unskill_cuda_region_detect(const float* key, const float* directions, const float* limits, bool* hit,
                                            int64_t tokens, int64_t width, int64_t count, int64_t regions,
                                            void* stream) {
  if (tokens == 0) return cudaSuccess;
  size_t bytes = static_cast<size_t>(count) * sizeof(float);
  unskill::region_detect_kernel<<<unskill::blocks_for(tokens), unskill::kThreads, bytes,
                                  static_cast<cudaStream_t>(stream)>>>(key, directions, limits, hit, tokens, width,
                                                                       count, regions);
  return cudaGetLastError();
}

#endif
