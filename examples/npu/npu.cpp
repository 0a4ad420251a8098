// Run a compiled model with plain ONNX Runtime's C++ API: token ids in, greedy token ids out. Same as python_npu.py.
//
//   npu FOLDER PLUGIN BACKEND COUNT ID...
//
// FOLDER is npu/<target>, PLUGIN libonnxruntime_providers_qnn.so, BACKEND libQnnHtp.so. With "-" for PLUGIN, everything runs
// on the CPU, and prefill.onnx and decode.onnx must be uncompiled graphs.
//
// Compiled and run on x86-64 Linux by tests/test_examples.py if ORT_INCLUDE names a folder with ONNX Runtime's
// headers: with g++ 12, C API headers of version 29, C++ headers of version 18 and the library of onnxruntime 1.32.0, on
// the CPU and on the emulator. Not compiled with the Android NDK, not run on a device.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace fs = std::filesystem;
using Values = std::map<std::string, Ort::Value>;

static const char* kProvider = "QNNExecutionProvider";
static const Ort::MemoryInfo kMemory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

// Session options for the NPU that do not let nodes fall back to the CPU. The plugin's four calls are the C API's: they
// are the same in all headers since ONNX Runtime 1.22.
Ort::SessionOptions NpuOptions(Ort::Env& env, const std::string& plugin, const std::string& backend) {
  const OrtApi& api = Ort::GetApi();
  Ort::ThrowOnError(api.RegisterExecutionProviderLibrary(env, kProvider, plugin.c_str()));
  const OrtEpDevice* const* devices = nullptr;
  size_t count = 0;
  Ort::ThrowOnError(api.GetEpDevices(env, &devices, &count));
  const OrtEpDevice* chosen = nullptr;
  for (size_t i = 0; i < count; ++i) {
    if (std::strcmp(api.EpDevice_EpName(devices[i]), kProvider) != 0) continue;
    // On a device it is an NPU; the emulator is listed as a CPU.
    const bool npu = api.HardwareDevice_Type(api.EpDevice_Device(devices[i])) == OrtHardwareDeviceType_NPU;
    if (chosen == nullptr || npu) chosen = devices[i];
  }
  if (chosen == nullptr) throw std::runtime_error("the plugin offers no device here");
  const char* keys[] = {"backend_path", "htp_performance_mode"};
  const char* values[] = {backend.c_str(), "burst"};
  Ort::SessionOptions options;
  options.AddConfigEntry("session.disable_cpu_ep_fallback", "1");
  Ort::ThrowOnError(api.SessionOptionsAppendExecutionProvider_V2(options, env, &chosen, 1, keys, values, 2));
  return options;
}

struct Graph {
  Ort::Session session;
  std::vector<std::string> inputs, outputs;

  Graph(Ort::Env& env, const fs::path& path, const Ort::SessionOptions& options) : session(env, path.c_str(), options) {
    Ort::AllocatorWithDefaultOptions allocator;
    for (size_t i = 0; i < session.GetInputCount(); ++i) inputs.emplace_back(session.GetInputNameAllocated(i, allocator).get());
    for (size_t i = 0; i < session.GetOutputCount(); ++i) outputs.emplace_back(session.GetOutputNameAllocated(i, allocator).get());
  }

  std::vector<int64_t> InputShape(size_t i) const { return session.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetShape(); }

  // Takes its inputs out of `values` by name and puts its outputs there.
  void Run(Values& values) {
    Ort::IoBinding binding(session);
    for (const auto& name : inputs) binding.BindInput(name.c_str(), values.at(name));
    for (const auto& name : outputs) binding.BindOutput(name.c_str(), kMemory);
    session.Run(Ort::RunOptions{nullptr}, binding);
    std::vector<Ort::Value> made = binding.GetOutputValues();
    for (size_t i = 0; i < outputs.size(); ++i) values.insert_or_assign(outputs[i], std::move(made[i]));
  }
};

// prefill.onnx, or prefill.0.onnx, prefill.1.onnx, ... if the model was split.
std::vector<Graph> OpenChain(Ort::Env& env, const fs::path& folder, const std::string& role, const Ort::SessionOptions& options) {
  std::vector<Graph> chain;
  for (int part = 0; fs::exists(folder / (role + "." + std::to_string(part) + ".onnx")); ++part) {
    chain.emplace_back(env, folder / (role + "." + std::to_string(part) + ".onnx"), options);
  }
  if (chain.empty()) chain.emplace_back(env, folder / (role + ".onnx"), options);
  return chain;
}

Ort::Value Int64Row(std::vector<int64_t>& row) {
  const int64_t shape[] = {1, static_cast<int64_t>(row.size())};
  return Ort::Value::CreateTensor<int64_t>(kMemory, row.data(), row.size(), shape, 2);
}

class Model {
 public:
  Model(Ort::Env& env, const fs::path& folder, const Ort::SessionOptions& options)
      : host_(env, folder / "host.onnx", Ort::SessionOptions{}),
        prefill_(OpenChain(env, folder, "prefill", options)),
        decode_(OpenChain(env, folder, "decode", options)) {
    Ort::AllocatorWithDefaultOptions allocator;
    for (auto& graph : prefill_) {
      for (size_t i = 0; i < graph.inputs.size(); ++i) {
        const std::string& name = graph.inputs[i];
        const std::vector<int64_t> shape = graph.InputShape(i);
        if (name == "inputs_embeds") width_ = shape[1];
        if (name.rfind("past_key_values.", 0) != 0) continue;
        const auto type = graph.session.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetElementType();
        element_ = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? 4 : 2;
        Ort::Value past = Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), type);
        std::memset(past.GetTensorMutableRawData(), 0, element_ * past.GetTensorTypeAndShapeInfo().GetElementCount());
        slots_ = shape[2];
        values_.insert_or_assign(name, std::move(past));
        pasts_.push_back(name);
      }
    }
  }

  bool Full() const { return length_ >= slots_; }

  // Feeds a prompt or a token, and returns the most likely next token.
  int64_t Feed(const std::vector<int64_t>& ids) {
    const int64_t width = ids.size() == 1 ? 1 : width_;
    int64_t next = 0;
    for (size_t start = 0; start < ids.size(); start += width) {
      const size_t count = std::min<size_t>(width, ids.size() - start);
      next = Run({ids.begin() + start, ids.begin() + start + count}, width);
    }
    return next;
  }

 private:
  int64_t Run(std::vector<int64_t> ids, int64_t width) {
    const int64_t count = static_cast<int64_t>(ids.size());
    if (length_ + count > slots_) throw std::runtime_error("the cache is full");
    ids.resize(width, 0);
    std::vector<int64_t> positions(width);
    std::iota(positions.begin(), positions.end(), length_);
    values_.insert_or_assign("input_ids", Int64Row(ids));
    values_.insert_or_assign("position_ids", Int64Row(positions));
    host_.Run(values_);
    for (auto& graph : width == 1 ? decode_ : prefill_) graph.Run(values_);
    // The graphs return only the new keys and values; copy the rows of real tokens to their slots.
    for (const auto& name : pasts_) {
      Ort::Value& past = values_.at(name);
      const Ort::Value& fresh = values_.at("new." + name.substr(std::strlen("past_key_values.")));
      const std::vector<int64_t> shape = past.GetTensorTypeAndShapeInfo().GetShape();
      const size_t row = shape[3] * element_;
      for (int64_t head = 0; head < shape[1]; ++head) {
        char* to = static_cast<char*>(past.GetTensorMutableRawData()) + (head * slots_ + length_) * row;
        const char* from = static_cast<const char*>(fresh.GetTensorRawData()) + head * width * row;
        std::memcpy(to, from, count * row);
      }
    }
    length_ += count;
    const Ort::Value& logits = values_.at("logits");
    const int64_t vocabulary = logits.GetTensorTypeAndShapeInfo().GetShape()[2];
    const float* last = logits.GetTensorData<float>() + (count - 1) * vocabulary;
    return std::max_element(last, last + vocabulary) - last;
  }

  Graph host_;
  std::vector<Graph> prefill_, decode_;
  Values values_;
  std::vector<std::string> pasts_;
  int64_t width_ = 1, slots_ = 0, length_ = 0;
  size_t element_ = 2;
};

int main(int argc, char** argv) try {
  if (argc < 6) throw std::runtime_error("npu FOLDER PLUGIN BACKEND COUNT ID...");
  const std::string plugin = argv[2];
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "npu");
  const Ort::SessionOptions options = plugin == "-" ? Ort::SessionOptions{} : NpuOptions(env, plugin, argv[3]);
  std::vector<int64_t> prompt;
  for (int i = 5; i < argc; ++i) prompt.push_back(std::stoll(argv[i]));
  Model model(env, argv[1], options);
  int64_t token = model.Feed(prompt);
  std::cout << token;
  for (int i = 1; i < std::stoi(argv[4]) && !model.Full(); ++i) std::cout << " " << (token = model.Feed({token}));
  std::cout << std::endl;
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return 1;
}
