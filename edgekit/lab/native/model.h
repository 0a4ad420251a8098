// Models on ONNX Runtime: one whose cache grows, and a pipeline of static graphs. As edgekit/run/{runner,npu}.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include "arguments.h"

namespace edgekit {

using Tokens = std::vector<int64_t>;
using Shape = std::vector<int64_t>;

inline const std::string PAST = "past_key_values.", PRESENT = "present.", NEW = "new.";

// How the sessions are opened. A provider is data: its name is passed on, never compared.
struct Opening {
  int threads = 1;
  bool arena = true;
  Pairs entries, device_entries, options;
  std::string provider, plugin, function, append;
  unsigned flags = 0;
  void* library = nullptr;
};

class Opener {
 public:
  explicit Opener(Opening how) : how_(std::move(how)) {
    // Plugins warn about what their device lacks; stderr is for those who look for it.
    if (!how_.plugin.empty()) env_.RegisterExecutionProviderLibrary(how_.provider.c_str(), how_.plugin);
  }

  Ort::Session open(const std::string& path, bool on_device) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(how_.threads);
    options.SetInterOpNumThreads(1);
    options.SetLogSeverityLevel(4);
    options.DisableMemPattern();
    if (!how_.arena) options.DisableCpuMemArena();
    for (const auto& [key, value] : on_device ? how_.device_entries : how_.entries)
      options.AddConfigEntry(key.c_str(), value.c_str());
    if (on_device) add_provider(options);
    if (how_.append.empty()) return Ort::Session(env_, path.c_str(), options);
    std::ifstream file(path, std::ios::binary);
    std::string graph{std::istreambuf_iterator<char>(file), {}};
    if (graph.empty()) throw Error{path + " cannot be read", "push the bundle again"};
    graph += how_.append;
    return Ort::Session(env_, graph.data(), graph.size(), options);
  }

 private:
  void add_provider(Ort::SessionOptions& options) {
    const std::unordered_map<std::string, std::string> values(how_.options.begin(), how_.options.end());
    if (!how_.function.empty()) {
      using Add = OrtStatus* (*)(OrtSessionOptions*, unsigned);
      const auto add = reinterpret_cast<Add>(dlsym(how_.library, how_.function.c_str()));
      if (!add) throw Error{"this ONNX Runtime has no " + how_.function, "use a build of it that has this provider"};
      Ort::ThrowOnError(add(options, how_.flags));
    } else if (!how_.plugin.empty()) {
      std::vector<Ort::ConstEpDevice> found;
      for (const auto& device : env_.GetEpDevices())
        if (found.empty() && how_.provider == device.EpName()) found.push_back(device);
      if (found.empty())
        throw Error{"the plugin finds no device for " + how_.provider, "check that this device has the chip"};
      options.AppendExecutionProvider_V2(env_, found, values);
    } else {
      options.AppendExecutionProvider(how_.provider, values);
    }
  }

  Opening how_;
  Ort::Env env_{ORT_LOGGING_LEVEL_FATAL, "edgekit"};
};

inline size_t element_bytes(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16:
      return 2;
    default:
      throw Error{"the graph has a cache or logits of an unknown type", "rebuild the bundle with `edgekit build`"};
  }
}

inline float to_float(const void* data, ONNXTensorElementDataType type, size_t i) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return static_cast<const float*>(data)[i];
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) return static_cast<const Ort::Float16_t*>(data)[i].ToFloat();
  return static_cast<const uint16_t*>(data)[i];
}

// A tensor over memory of its own.
struct Tensor {
  Shape shape;
  ONNXTensorElementDataType type;
  std::vector<char> bytes;

  Tensor(Shape sizes, ONNXTensorElementDataType kind) : shape(std::move(sizes)), type(kind) {
    size_t count = 1;
    for (int64_t size : shape) count *= static_cast<size_t>(size);
    bytes.assign(std::max<size_t>(count * element_bytes(type), 1), 0);
  }

  Ort::Value value() { return value(shape); }

  // A tensor over the beginning of the memory.
  Ort::Value value(const Shape& sizes) {
    size_t count = element_bytes(type);
    for (int64_t size : sizes) count *= static_cast<size_t>(size);
    return Ort::Value::CreateTensor(memory(), bytes.data(), count, sizes.data(), sizes.size(), type);
  }

  static const OrtMemoryInfo* memory() {
    static const Ort::MemoryInfo info = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    return info;
  }
};

inline Ort::Value whole_numbers(int64_t* data, size_t count, const Shape& shape) {
  return Ort::Value::CreateTensor<int64_t>(Tensor::memory(), data, count, shape.data(), shape.size());
}

// Copies positions [1, heads, from.., size] of one cache into another.
inline void copy_positions(char* to, int64_t room, int64_t at, const char* from, int64_t held, int64_t count,
                           int64_t heads, size_t row) {
  for (int64_t head = 0; head < heads; head++)
    std::memmove(to + static_cast<size_t>(head * room + at) * row, from + static_cast<size_t>(head * held) * row,
                 static_cast<size_t>(count) * row);
}

// A model with a cache: tokens in, the last position's logits out.
class Model {
 public:
  virtual ~Model() = default;
  virtual void rewind(int64_t length) { length_ = length; }
  int64_t context() const { return context_; }
  int64_t vocab() const { return static_cast<int64_t>(logits_.size()); }
  int64_t length() const { return length_; }

  const std::vector<float>& feed(const Tokens& tokens) {
    if (tokens.empty()) throw Error{"the prompt has no tokens", "pass a prompt of at least one token"};
    for (int64_t token : tokens)
      if (token < 0 || token >= vocab())
        throw Error{"token " + std::to_string(token) + " is outside the vocabulary of " + std::to_string(vocab()),
                    "encode the text with the bundle's own tokenizer"};
    if (length_ + static_cast<int64_t>(tokens.size()) > context_)
      throw Error{std::to_string(length_) + " tokens in the cache and " + std::to_string(tokens.size()) +
                      " new ones are more than the context of " + std::to_string(context_),
                  "shorten the prompt"};
    for (size_t start = 0; start < tokens.size(); start += static_cast<size_t>(chunk_))
      run(tokens.data() + start, std::min<int64_t>(chunk_, static_cast<int64_t>(tokens.size() - start)),
          tokens.size() == 1);
    return logits_;
  }

 protected:
  virtual void run(const int64_t* ids, int64_t count, bool single) = 0;

  void read_logits(const void* data, ONNXTensorElementDataType type, int64_t row) {
    for (size_t i = 0; i < logits_.size(); i++)
      logits_[i] = to_float(data, type, static_cast<size_t>(row) * logits_.size() + i);
  }

  int64_t context_ = 0, length_ = 0, chunk_ = 1;
  std::vector<float> logits_;
};

struct GrowingPlan {
  std::string graph, first_logit;
  bool shared = false, tight = false;
  int64_t context = 1, chunk = 1;
};

// The graph for the CPU. Its cache is written in place if it is shared, else appended to a copy.
class GrowingModel : public Model {
 public:
  GrowingModel(Opener& opener, const GrowingPlan& plan) : plan_(plan), session_(opener.open(plan.graph, false)) {
    context_ = plan.context;
    chunk_ = std::min(plan.chunk, plan.context);
    const auto names = session_.GetInputNames();
    for (size_t i = 0; i < names.size(); i++) {
      has_mask_ = has_mask_ || names[i] == "attention_mask";
      has_positions_ = has_positions_ || names[i] == "position_ids";
      if (names[i].rfind(PAST, 0)) continue;
      const auto info = session_.GetInputTypeInfo(i);
      const auto tensor = info.GetTensorTypeAndShapeInfo();
      const Shape shape = tensor.GetShape();
      if (shape.size() != 4 || shape[1] < 1 || shape[3] < 1)
        throw Error{"graph input '" + names[i] + "' has no fixed heads and head size", "rebuild the bundle"};
      slots_.push_back({names[i], PRESENT + names[i].substr(PAST.size()), shape[1], shape[3], tensor.GetElementType()});
    }
    for (const auto& name : session_.GetOverridableInitializerNames()) last_only_ |= name == plan.first_logit;
    const auto outputs = session_.GetOutputNames();
    for (size_t i = 0; i < outputs.size(); i++) {
      if (outputs[i] != "logits") continue;
      const auto info = session_.GetOutputTypeInfo(i);
      logits_.resize(static_cast<size_t>(std::max<int64_t>(info.GetTensorTypeAndShapeInfo().GetShape().back(), 0)));
      type_ = info.GetTensorTypeAndShapeInfo().GetElementType();
    }
    if (logits_.empty()) throw Error{"the graph has no logits with a fixed vocabulary", "rebuild the bundle"};
    mask_.assign(static_cast<size_t>(context_), 1);
  }

  // Heads are stored one after another, so a cache that is not written in place is packed again.
  void rewind(int64_t length) override {
    if (!plan_.shared && length < length_)
      for (size_t i = 0; i < slots_.size(); i++)
        copy_positions(past_[i].bytes.data(), length, 0, past_[i].bytes.data(), length_, length, slots_[i].heads,
                       slots_[i].row());
    length_ = length;
  }

 protected:
  void run(const int64_t* ids, int64_t count, bool) override {
    const int64_t total = length_ + count;
    Tokens given(ids, ids + count), places;
    for (int64_t at = length_; at < total; at++) places.push_back(at);
    bind_cache(total);
    binding_.BindInput("input_ids", whole_numbers(given.data(), given.size(), {1, count}));
    if (has_positions_) binding_.BindInput("position_ids", whole_numbers(places.data(), places.size(), {1, count}));
    if (has_mask_)
      binding_.BindInput("attention_mask", whole_numbers(mask_.data(), static_cast<size_t>(total), {1, total}));
    int64_t first = count - 1;
    if (last_only_) binding_.BindInput(plan_.first_logit.c_str(), whole_numbers(&first, 1, {1}));
    const int64_t rows = last_only_ ? 1 : count;
    if (!out_ || out_->shape[1] != rows) out_ = std::make_unique<Tensor>(Shape{1, rows, vocab()}, type_);
    binding_.BindOutput("logits", out_->value());
    session_.Run(Ort::RunOptions{nullptr}, binding_);
    read_logits(out_->bytes.data(), type_, rows - 1);
    if (!plan_.shared) past_.swap(spare_);
    length_ = total;
  }

 private:
  struct Slot {
    std::string past, present;
    int64_t heads, size;
    ONNXTensorElementDataType type;
    size_t row() const { return static_cast<size_t>(size) * element_bytes(type); }
  };

  // 256 positions doubled, or a multiple of 128 to save memory; as edgekit/run/cache.py.
  int64_t room_for(int64_t total) const {
    if (plan_.tight) return std::min((total + 127) / 128 * 128, context_);
    int64_t room = 256;
    while (room < total) room *= 2;
    return std::min(room, context_);
  }

  void bind_cache(int64_t total) {
    if (plan_.shared) {
      if (total <= room_) return;
      const int64_t room = room_for(total);
      for (size_t i = 0; i < slots_.size(); i++) grow(i, room);
      room_ = room;
      return;
    }
    for (size_t i = 0; i < slots_.size(); i++) {
      const Slot& slot = slots_[i];
      const Shape held{1, slot.heads, length_, slot.size}, made{1, slot.heads, total, slot.size};
      if (past_.size() <= i) past_.emplace_back(Shape{1, slot.heads, 1, slot.size}, slot.type);
      if (spare_.size() <= i) spare_.emplace_back(Shape{1, slot.heads, 1, slot.size}, slot.type);
      if (spare_[i].shape[2] < total)
        spare_[i] = Tensor({1, slot.heads, room_for(total), slot.size}, slot.type);
      binding_.BindInput(slot.past.c_str(), past_[i].value(held));
      binding_.BindOutput(slot.present.c_str(), spare_[i].value(made));
    }
  }

  void grow(size_t i, int64_t room) {
    const Slot& slot = slots_[i];
    Tensor wider({1, slot.heads, room, slot.size}, slot.type);
    if (i < past_.size()) {
      copy_positions(wider.bytes.data(), room, 0, past_[i].bytes.data(), room_, length_, slot.heads, slot.row());
      past_[i] = std::move(wider);
    } else {
      past_.push_back(std::move(wider));
    }
    binding_.BindInput(slot.past.c_str(), past_[i].value());
    binding_.BindOutput(slot.present.c_str(), past_[i].value());
  }

  GrowingPlan plan_;
  Ort::Session session_;
  Ort::IoBinding binding_{session_};
  std::vector<Slot> slots_;
  std::vector<Tensor> past_, spare_;
  std::unique_ptr<Tensor> out_;
  ONNXTensorElementDataType type_ = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Tokens mask_;
  int64_t room_ = 0;
  bool has_mask_ = false, has_positions_ = false, last_only_ = false;
};

// A session, the names of its inputs and outputs.
struct Part {
  Ort::Session session;
  std::vector<std::string> inputs, outputs;

  explicit Part(Ort::Session opened)
      : session(std::move(opened)), inputs(session.GetInputNames()), outputs(session.GetOutputNames()) {}
};

struct StaticPlan {
  std::string host;
  std::vector<std::string> prefill, decode;
  bool on_device = false;
};

// The host's graph on the CPU, then a chain of static graphs: of prompts, padded, or of single tokens.
class StaticModel : public Model {
 public:
  StaticModel(Opener& opener, const StaticPlan& plan) : host_(opener.open(plan.host, false)) {
    for (const auto& path : plan.prefill) prefill_.emplace_back(opener.open(path, plan.on_device));
    for (const auto& path : plan.decode) decode_.emplace_back(opener.open(path, plan.on_device));
    for (const auto& part : prefill_)
      for (size_t i = 0; i < part.inputs.size(); i++) {
        const auto info = part.session.GetInputTypeInfo(i);
        const auto tensor = info.GetTensorTypeAndShapeInfo();
        const Shape shape = tensor.GetShape();
        if (part.inputs[i].rfind(PAST, 0) == 0) {
          context_ = shape.at(2);
          cache_.emplace(part.inputs[i], Tensor(shape, tensor.GetElementType()));
        } else if (shape.size() == 3 && &part == &prefill_.front()) {
          chunk_ = shape[1];  // inputs_embeds [1, width, hidden]
        }
      }
    const auto info = prefill_.back().session.GetOutputTypeInfo(0);
    logits_.resize(static_cast<size_t>(info.GetTensorTypeAndShapeInfo().GetShape().back()));
  }

 protected:
  void run(const int64_t* ids, int64_t count, bool single) override {
    const int64_t width = single ? 1 : chunk_;
    Tokens filled(static_cast<size_t>(width), 0), places(static_cast<size_t>(width));
    std::copy(ids, ids + count, filled.begin());
    // Padding gets the last token's position: a higher one may select other angles, or have none.
    for (int64_t i = 0; i < width; i++) places[static_cast<size_t>(i)] = length_ + std::min(i, count - 1);
    std::map<std::string, Ort::Value> values;
    values.emplace("input_ids", whole_numbers(filled.data(), filled.size(), {1, width}));
    values.emplace("position_ids", whole_numbers(places.data(), places.size(), {1, width}));
    for (auto& [name, tensor] : cache_) values.emplace(name, tensor.value());
    run_part(host_, values);
    for (auto& part : single ? decode_ : prefill_) run_part(part, values);
    for (auto& [name, held] : cache_) {
      const auto fresh = values.find(NEW + name.substr(PAST.size()));
      if (fresh == values.end()) continue;
      const size_t row = static_cast<size_t>(held.shape[3]) * element_bytes(held.type);
      copy_positions(held.bytes.data(), held.shape[2], length_, fresh->second.GetTensorData<char>(), width, count,
                     held.shape[1], row);
    }
    const Ort::Value& logits = values.at("logits");
    read_logits(logits.GetTensorRawData(), logits.GetTensorTypeAndShapeInfo().GetElementType(), count - 1);
    length_ += count;
  }

 private:
  static void run_part(Part& part, std::map<std::string, Ort::Value>& values) {
    std::vector<const char*> inputs, outputs;
    std::vector<const OrtValue*> given;
    for (const auto& name : part.inputs) {
      const auto found = values.find(name);
      if (found == values.end()) throw Error{"no graph before gives '" + name + "'", "rebuild the bundle"};
      inputs.push_back(name.c_str());
      given.push_back(found->second);
    }
    for (const auto& name : part.outputs) outputs.push_back(name.c_str());
    std::vector<OrtValue*> made(outputs.size(), nullptr);
    Ort::ThrowOnError(Ort::GetApi().Run(part.session, nullptr, inputs.data(), given.data(), given.size(),
                                        outputs.data(), outputs.size(), made.data()));
    for (size_t i = 0; i < made.size(); i++) values.insert_or_assign(part.outputs[i], Ort::Value(made[i]));
  }

  Part host_;
  std::vector<Part> prefill_, decode_;
  std::map<std::string, Tensor> cache_;
};

}  // namespace edgekit
