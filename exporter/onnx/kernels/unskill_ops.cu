// Custom operators of the domain ai.unskill for ONNX Runtime, on CPU and, if UNSKILL_CUDA is defined, on CUDA.
//
//   g++ -std=c++17 -O3 -ffp-contract=off -fPIC -shared -fvisibility=hidden -x c++ unskill_ops.cu -o FILE
//   nvcc -std=c++17 -O3 --fmad=false -DUNSKILL_CUDA -Xcompiler -fPIC,-fvisibility=hidden -shared unskill_ops.cu -o FILE
//
// `unskill build-ops` runs these with the flags of exporter/onnx/library.py. Nothing here throws or keeps state.
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>

#include "ort_abi.h"
#include "unskill_math.h"
#ifdef UNSKILL_CUDA
#include "unskill_cuda.h"
#endif

namespace unskill {
namespace {

constexpr const char* kDomain = "ai.unskill";
constexpr size_t kMostInputs = 4, kMostRank = 3;

#define UNSKILL_RETURN_IF_ERROR(expression)                   \
  do {                                                        \
    if (OrtStatus* status_ = (expression)) return status_;    \
  } while (false)

// A status with a message in the manner of printf, cut at 400 characters.
__attribute__((format(printf, 3, 4))) OrtStatus* error(const Api& api, ErrorCode code, const char* format, ...) {
  char message[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return api.CreateStatus(code, message);
}

struct Tensor {
  void* data;
  int64_t size[kMostRank];

  template <typename Element>
  const Element* as() const { return static_cast<const Element*>(data); }
};

struct Call;
using Compute = OrtStatus* (*)(const Call&);

// What an operator reads: its name in messages, its element type and its rank.
struct Input {
  const char* name;
  ElementType type;
  size_t rank;
};

struct Operator : OrtCustomOp {
  const char* name;
  const char* provider;
  Compute compute;
  ElementType output_type;
  size_t count;
  Input inputs[kMostInputs];
};

struct Kernel {
  const Operator* op;
  Api api;
};

// One call of a kernel, its inputs checked for type and rank.
struct Call {
  const Operator& op;
  const Api& api;
  OrtKernelContext* context;
  Tensor inputs[kMostInputs];

  // That a dimension of an input is what another input says it is.
  OrtStatus* expect(size_t input, size_t dimension, int64_t size) const {
    int64_t found = inputs[input].size[dimension];
    if (found == size) return nullptr;
    return error(api, kInvalidArgument, "%s::%s: dimension %zu of %s is %lld, by the other inputs it should be %lld",
                 kDomain, op.name, dimension, op.inputs[input].name, static_cast<long long>(found),
                 static_cast<long long>(size));
  }

  template <typename Element>
  OrtStatus* output(const int64_t* sizes, size_t rank, Element** data) const {
    OrtValue* value = nullptr;
    UNSKILL_RETURN_IF_ERROR(api.KernelContext_GetOutput(context, 0, sizes, rank, &value));
    void* raw = nullptr;
    UNSKILL_RETURN_IF_ERROR(api.GetTensorMutableData(value, &raw));
    *data = static_cast<Element*>(raw);
    return nullptr;
  }
};

OrtStatus* read_shape(const Api& api, const Operator& op, const Input& input, const OrtTensorTypeAndShapeInfo* info,
                      Tensor* tensor) {
  int type = 0;
  size_t rank = 0;
  UNSKILL_RETURN_IF_ERROR(api.GetTensorElementType(info, &type));
  UNSKILL_RETURN_IF_ERROR(api.GetDimensionsCount(info, &rank));
  if (type != input.type)
    return error(api, kInvalidArgument, "%s::%s: %s has element type %d, it should be %d", kDomain, op.name, input.name,
                 type, static_cast<int>(input.type));
  if (rank != input.rank)
    return error(api, kInvalidArgument, "%s::%s: %s has %zu dimensions, it should have %zu", kDomain, op.name,
                 input.name, rank, input.rank);
  return api.GetDimensions(info, tensor->size, rank);
}

OrtStatus* read_input(const Api& api, const Operator& op, size_t index, const OrtKernelContext* context,
                      Tensor* tensor) {
  const OrtValue* value = nullptr;
  UNSKILL_RETURN_IF_ERROR(api.KernelContext_GetInput(context, index, &value));
  if (value == nullptr)
    return error(api, kInvalidArgument, "%s::%s: %s is missing", kDomain, op.name, op.inputs[index].name);
  OrtTensorTypeAndShapeInfo* info = nullptr;
  UNSKILL_RETURN_IF_ERROR(api.GetTensorTypeAndShape(value, &info));
  OrtStatus* status = read_shape(api, op, op.inputs[index], info, tensor);
  api.ReleaseTensorTypeAndShapeInfo(info);
  UNSKILL_RETURN_IF_ERROR(status);
  // Only outputs are written to; ONNX Runtime has one function for both.
  return api.GetTensorMutableData(const_cast<OrtValue*>(value), &tensor->data);
}

// The operators: shapes are checked and the output made here; how it is filled depends on the provider.

struct NeuronDraws {
  const int64_t *position_ids, *token_ids, *keys;
  float* draws;
  int64_t tokens, neurons;

  OrtStatus* prepare(const Call& call) {
    const Tensor &positions = call.inputs[0], &ids = call.inputs[1], &all = call.inputs[2];
    int64_t sizes[] = {positions.size[0], positions.size[1], all.size[0]};
    UNSKILL_RETURN_IF_ERROR(call.expect(1, 0, sizes[0]));
    UNSKILL_RETURN_IF_ERROR(call.expect(1, 1, sizes[1]));
    position_ids = positions.as<int64_t>(), token_ids = ids.as<int64_t>(), keys = all.as<int64_t>();
    tokens = sizes[0] * sizes[1], neurons = sizes[2];
    return call.output(sizes, 3, &draws);
  }

  OrtStatus* on_cpu(const Call&) {
    for (int64_t token = 0; token < tokens; ++token) {
      uint64_t context = draw_context(position_ids[token], token_ids[token]);
      float* row = draws + token * neurons;
      for (int64_t i = 0; i < neurons; ++i) row[i] = uniform_draw(context, keys[i]);
    }
    return nullptr;
  }

#ifdef UNSKILL_CUDA
  int on_cuda(void* stream) {
    return unskill_cuda_neuron_draws(position_ids, token_ids, keys, draws, tokens, neurons, stream);
  }
#endif
};

struct NeuronAdjust {
  const float *pre_activation, *threshold, *standardisers;
  const int64_t* index;
  float* output;
  int64_t tokens, width, neurons;

  OrtStatus* prepare(const Call& call) {
    const int64_t* sizes = call.inputs[0].size;
    tokens = sizes[0] * sizes[1], width = sizes[2], neurons = call.inputs[1].size[0];
    UNSKILL_RETURN_IF_ERROR(call.expect(2, 0, sizes[0]));
    UNSKILL_RETURN_IF_ERROR(call.expect(2, 1, sizes[1]));
    UNSKILL_RETURN_IF_ERROR(call.expect(2, 2, neurons));
    UNSKILL_RETURN_IF_ERROR(call.expect(3, 0, 6));
    UNSKILL_RETURN_IF_ERROR(call.expect(3, 1, neurons));
    pre_activation = call.inputs[0].as<float>(), index = call.inputs[1].as<int64_t>();
    threshold = call.inputs[2].as<float>(), standardisers = call.inputs[3].as<float>();
    return call.output(sizes, 3, &output);
  }

  OrtStatus* on_cpu(const Call& call) {
    for (int64_t i = 0; i < neurons; ++i)
      if (index[i] < 0 || index[i] >= width)
        return error(call.api, kInvalidArgument, "%s::NeuronAdjust: index %lld is outside of 0 to %lld", kDomain,
                     static_cast<long long>(index[i]), static_cast<long long>(width - 1));
    if (tokens * width > 0) std::memcpy(output, pre_activation, static_cast<size_t>(tokens * width) * sizeof(float));
    for (int64_t token = 0; token < tokens; ++token) {
      const float *from = pre_activation + token * width, *above = threshold + token * neurons;
      float* row = output + token * width;
      for (int64_t i = 0; i < neurons; ++i)
        row[index[i]] = adjusted(from[index[i]], above[i], standardisers, neurons, i);
    }
    return nullptr;
  }

#ifdef UNSKILL_CUDA
  int on_cuda(void* stream) {
    return unskill_cuda_neuron_adjust(pre_activation, index, threshold, standardisers, output, tokens, width, neurons,
                                      stream);
  }
#endif
};

struct KeySpaceDetect {
  const float *key, *bounds;
  bool* hit;
  int64_t tokens, width, cubes;

  OrtStatus* prepare(const Call& call) {
    const int64_t* sizes = call.inputs[0].size;
    tokens = sizes[0] * sizes[1], width = sizes[2], cubes = call.inputs[1].size[0];
    UNSKILL_RETURN_IF_ERROR(call.expect(1, 1, 2));
    UNSKILL_RETURN_IF_ERROR(call.expect(1, 2, width));
    key = call.inputs[0].as<float>(), bounds = call.inputs[1].as<float>();
    return call.output(sizes, 2, &hit);
  }

  OrtStatus* on_cpu(const Call&) {
    for (int64_t token = 0; token < tokens; ++token) hit[token] = inside_any(key + token * width, bounds, width, cubes);
    return nullptr;
  }

#ifdef UNSKILL_CUDA
  int on_cuda(void* stream) { return unskill_cuda_key_space_detect(key, bounds, hit, tokens, width, cubes, stream); }
#endif
};

struct RegionDetect {
  const float *key, *directions, *limits;
  bool* hit;
  int64_t tokens, width, count, regions;

  OrtStatus* prepare(const Call& call) {
    const int64_t* sizes = call.inputs[0].size;
    tokens = sizes[0] * sizes[1], width = sizes[2];
    count = call.inputs[1].size[0], regions = call.inputs[2].size[0];
    UNSKILL_RETURN_IF_ERROR(call.expect(1, 1, width));
    UNSKILL_RETURN_IF_ERROR(call.expect(2, 1, 2));
    UNSKILL_RETURN_IF_ERROR(call.expect(2, 2, count));
    key = call.inputs[0].as<float>(), directions = call.inputs[1].as<float>(), limits = call.inputs[2].as<float>();
    return call.output(sizes, 2, &hit);
  }

  // The sum of a key vector along a direction, in parts that do not wait for each other.
  float coordinate(const float* vector, const float* direction) const {
    constexpr int64_t kParts = 16;
    float parts[kParts] = {};
    int64_t i = 0;
    for (; i + kParts <= width; i += kParts)
      for (int64_t part = 0; part < kParts; ++part) parts[part] += vector[i + part] * direction[i + part];
    float sum = 0;
    for (; i < width; ++i) sum += vector[i] * direction[i];
    for (float part : parts) sum += part;
    return sum;
  }

  OrtStatus* on_cpu(const Call& call) {
    std::unique_ptr<float[]> found(new (std::nothrow) float[static_cast<size_t>(count)]);
    if (found == nullptr) return error(call.api, kFail, "%s::RegionDetect: out of memory", kDomain);
    for (int64_t token = 0; token < tokens; ++token) {
      for (int64_t i = 0; i < count; ++i) found[i] = coordinate(key + token * width, directions + i * width);
      hit[token] = inside_any(found.get(), limits, count, regions);
    }
    return nullptr;
  }

#ifdef UNSKILL_CUDA
  int on_cuda(void* stream) {
    return unskill_cuda_region_detect(key, directions, limits, hit, tokens, width, count, regions, stream);
  }
#endif
};

template <typename Work>
OrtStatus* compute_on_cpu(const Call& call) {
  Work work{};
  UNSKILL_RETURN_IF_ERROR(work.prepare(call));
  return work.on_cpu(call);
}

#ifdef UNSKILL_CUDA
template <typename Work>
OrtStatus* compute_on_cuda(const Call& call) {
  Work work{};
  UNSKILL_RETURN_IF_ERROR(work.prepare(call));
  void* stream = nullptr;
  UNSKILL_RETURN_IF_ERROR(call.api.KernelContext_GetGPUComputeStream(call.context, &stream));
  int code = work.on_cuda(stream);
  if (code == cudaSuccess) return nullptr;
  return error(call.api, kFail, "%s::%s: %s", kDomain, call.op.name,
               cudaGetErrorString(static_cast<cudaError_t>(code)));
}
#endif

// The functions that ONNX Runtime calls.

const Operator& operator_of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* table, const OrtKernelInfo*, void** kernel) {
  Api api(table);
  *kernel = new (std::nothrow) Kernel{&operator_of(op), api};
  return *kernel ? nullptr : error(api, kFail, "%s::%s: out of memory", kDomain, operator_of(op).name);
}

OrtStatus* compute_kernel(void* kernel, OrtKernelContext* context) {
  const Kernel& made = *static_cast<const Kernel*>(kernel);
  Call call{*made.op, made.api, context, {}};
  for (size_t i = 0; i < made.op->count; ++i)
    UNSKILL_RETURN_IF_ERROR(read_input(made.api, *made.op, i, context, &call.inputs[i]));
  return made.op->compute(call);
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

template <size_t count>
Operator make(const char* name, const char* provider, Compute compute, ElementType output_type,
              const Input (&inputs)[count]) {
  Operator op{};
  op.version = kApiVersion;
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute_kernel;
  op.KernelDestroy = destroy_kernel;
  op.GetName = [](const OrtCustomOp* self) { return operator_of(self).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp* self) { return operator_of(self).provider; };
  op.GetInputTypeCount = [](const OrtCustomOp* self) { return operator_of(self).count; };
  op.GetInputType = [](const OrtCustomOp* self, size_t i) -> int { return operator_of(self).inputs[i].type; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) -> int { return operator_of(self).output_type; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return kRequired; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return kRequired; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) -> int { return kDefaultMemory; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.name = name, op.provider = provider, op.compute = compute, op.output_type = output_type, op.count = count;
  for (size_t i = 0; i < count; ++i) op.inputs[i] = inputs[i];
  return op;
}

constexpr Input kDrawsInputs[] = {{"position_ids", kInt64, 2}, {"token_ids", kInt64, 2}, {"keys", kInt64, 1}};
constexpr Input kAdjustInputs[] = {
    {"pre_activation", kFloat, 3}, {"index", kInt64, 1}, {"threshold", kFloat, 3}, {"standardisers", kFloat, 2}};
constexpr Input kDetectInputs[] = {{"key", kFloat, 3}, {"bounds", kFloat, 3}};
constexpr Input kRegionInputs[] = {{"key", kFloat, 3}, {"directions", kFloat, 2}, {"limits", kFloat, 3}};

// ONNX Runtime keeps pointers to the operators for as long as the process has sessions.
const Operator kOperators[] = {
    make("NeuronDraws", "CPUExecutionProvider", compute_on_cpu<NeuronDraws>, kFloat, kDrawsInputs),
    make("NeuronAdjust", "CPUExecutionProvider", compute_on_cpu<NeuronAdjust>, kFloat, kAdjustInputs),
    make("KeySpaceDetect", "CPUExecutionProvider", compute_on_cpu<KeySpaceDetect>, kBool, kDetectInputs),
    make("RegionDetect", "CPUExecutionProvider", compute_on_cpu<RegionDetect>, kBool, kRegionInputs),
#ifdef UNSKILL_CUDA
    make("NeuronDraws", "CUDAExecutionProvider", compute_on_cuda<NeuronDraws>, kFloat, kDrawsInputs),
    make("NeuronAdjust", "CUDAExecutionProvider", compute_on_cuda<NeuronAdjust>, kFloat, kAdjustInputs),
    make("KeySpaceDetect", "CUDAExecutionProvider", compute_on_cuda<KeySpaceDetect>, kBool, kDetectInputs),
    make("RegionDetect", "CUDAExecutionProvider", compute_on_cuda<RegionDetect>, kBool, kRegionInputs),
#endif
};

OrtCustomOpDomain* make_domain(const Api& api, OrtStatus** status) {
  OrtCustomOpDomain* domain = nullptr;
  *status = api.CreateCustomOpDomain(kDomain, &domain);
  for (const Operator& op : kOperators)
    if (*status == nullptr) *status = api.CustomOpDomain_Add(domain, &op);
  return *status == nullptr ? domain : nullptr;
}

}  // namespace
}  // namespace unskill

// What ONNX Runtime looks for in the file: adds the operators to the options of a session.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  const OrtApi* table = base->GetApi(unskill::kApiVersion);
  if (table == nullptr) {
    // Without the table there is no way to make a status, and null would mean success. Releases before 1.16 say
    // themselves on stderr which API they lack; the model's nodes then have no kernel, and their bodies are used.
    return nullptr;
  }
  unskill::Api api(table);
  // Made once, because sessions keep a pointer to it: for the first ONNX Runtime of the process, whose own it is.
  struct Domain {
    const OrtApi* table;
    OrtCustomOpDomain* domain;
  };
  OrtStatus* status = nullptr;
  static const Domain made{table, unskill::make_domain(api, &status)};
  UNSKILL_RETURN_IF_ERROR(status);
  if (made.domain == nullptr) return unskill::error(api, unskill::kFail, "%s: no domain", unskill::kDomain);
  if (made.table != table)
    return unskill::error(api, unskill::kFail, "%s: another ONNX Runtime in this process uses this library already",
                          unskill::kDomain);
  return api.AddCustomOpDomain(options, made.domain);
}
