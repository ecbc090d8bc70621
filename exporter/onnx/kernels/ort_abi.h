// The part of ONNX Runtime's C ABI that the operators use, declared by hand.
//
// ONNX Runtime hands its functions out as one table of pointers that later releases only append to, so places in it are
// facts that hold for every release. A library that knows its few places needs neither ONNX Runtime's headers nor its
// libraries, and one file loads into every release that offers API 16 (1.16 and newer). The places are checked against
// a real header by tests/exporter/onnx/test_library.py, where one is at hand.
#ifndef UNSKILL_ORT_ABI_H
#define UNSKILL_ORT_ABI_H

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtTensorTypeAndShapeInfo;

struct OrtApi {
  void (*slot[194])();
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// What ONNX Runtime asks of an operator: the fields of version 16, the first whose compute function may fail.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
};

}  // extern "C"

namespace unskill {

constexpr uint32_t kApiVersion = 16;

enum ElementType { kFloat = 1, kInt64 = 7, kBool = 9 };  // ONNXTensorElementDataType
enum ErrorCode { kFail = 1, kInvalidArgument = 2 };      // OrtErrorCode
enum { kRequired = 0, kDefaultMemory = 0 };              // OrtCustomOpInputOutputCharacteristic, OrtMemType

// ONNX Runtime's functions, each under its own name, at its place in the table. All but CreateStatus return null on
// success and otherwise a status that the caller owns: here it is always handed on to ONNX Runtime.
class Api {
 public:
  explicit Api(const OrtApi* table) : table_(table) {}

  OrtStatus* CreateStatus(int code, const char* message) const {
    return at<OrtStatus*(int, const char*)>(0)(code, message);
  }
  OrtStatus* CreateCustomOpDomain(const char* name, OrtCustomOpDomain** domain) const {
    return at<OrtStatus*(const char*, OrtCustomOpDomain**)>(26)(name, domain);
  }
  OrtStatus* CustomOpDomain_Add(OrtCustomOpDomain* domain, const OrtCustomOp* op) const {
    return at<OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>(27)(domain, op);
  }
  OrtStatus* AddCustomOpDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return at<OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>(28)(options, domain);
  }
  OrtStatus* GetTensorMutableData(OrtValue* value, void** data) const {
    return at<OrtStatus*(OrtValue*, void**)>(51)(value, data);
  }
  OrtStatus* GetTensorElementType(const OrtTensorTypeAndShapeInfo* info, int* type) const {
    return at<OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*)>(60)(info, type);
  }
  OrtStatus* GetDimensionsCount(const OrtTensorTypeAndShapeInfo* info, size_t* count) const {
    return at<OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)>(61)(info, count);
  }
  OrtStatus* GetDimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* sizes, size_t count) const {
    return at<OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)>(62)(info, sizes, count);
  }
  OrtStatus* GetTensorTypeAndShape(const OrtValue* value, OrtTensorTypeAndShapeInfo** info) const {
    return at<OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>(65)(value, info);
  }
  OrtStatus* KernelContext_GetInput(const OrtKernelContext* context, size_t index, const OrtValue** value) const {
    return at<OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)>(90)(context, index, value);
  }
  OrtStatus* KernelContext_GetOutput(OrtKernelContext* context, size_t index, const int64_t* sizes, size_t count,
                                     OrtValue** value) const {
    return at<OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>(91)(context, index, sizes,
                                                                                            count, value);
  }
  void ReleaseTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo* info) const {
    at<void(OrtTensorTypeAndShapeInfo*)>(99)(info);
  }
  OrtStatus* KernelContext_GetGPUComputeStream(const OrtKernelContext* context, void** stream) const {
    return at<OrtStatus*(const OrtKernelContext*, void**)>(193)(context, stream);
  }

 private:
  template <typename Function>
  Function* at(size_t place) const {
    return reinterpret_cast<Function*>(table_->slot[place]);
  }

  const OrtApi* table_;
};

}  // namespace unskill

#endif
