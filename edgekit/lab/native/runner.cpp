// edgekit-runner: does one task with a bundle on this device, and prints what happens as lines of JSON.
//
//   edgekit-runner runtime=LIBONNXRUNTIME do=bench|sustain|generate threads=2 graph=... key=value ...
//
// The host makes the words (edgekit/lab/native/task.py). ONNX Runtime is opened when the program runs, so that one
// program serves every version of it from the headers' on.
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <thread>

#include "model.h"
#include "state.h"

namespace {

using namespace edgekit;

constexpr const char* VERSION = "1";
constexpr int64_t STRETCH = 128;

struct Decode {
  int64_t count, depth;
};

struct Task {
  std::string kind;
  std::vector<int64_t> prompts;
  std::vector<Decode> decodes;
  int64_t repetitions, warmup, loads, max_tokens, depth;
  bool bursts;
  double seconds;
  Tokens tokens, stop;
};

Task read_task(Arguments& words) {
  Task task{words.one("do"), words.wholes("pp"), {}, words.whole("repetitions", 1), words.whole("warmup", 0),
            std::max<int64_t>(words.whole("loads", 1), 1), words.whole("max_tokens", 0),
            words.whole("depth", 0), words.whole("bursts", 0) != 0, words.real("seconds", 0),
            words.wholes("tokens"), words.wholes("stop")};
  for (const auto& word : words.all("tg")) {
    const auto [count, depth] = split(word, '@');
    task.decodes.push_back({std::atoll(count.c_str()), std::atoll(depth.c_str())});
  }
  return task;
}

// Opens ONNX Runtime, without telemetry as edgekit/run/runtime.py; returns the library and its version.
std::pair<void*, std::string> load_runtime(const std::string& path) {
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!library) throw Error{std::string(dlerror()), "push the ONNX Runtime library of this device"};
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  if (!base) throw Error{path + " is no ONNX Runtime", "push the ONNX Runtime library of this device"};
  const std::string version = base()->GetVersionString();
  const OrtApi* api = base()->GetApi(ORT_API_VERSION);
  if (!api)
    throw Error{"ONNX Runtime " + version + " is too old for this runner, which was built with version 1." +
                    std::to_string(ORT_API_VERSION),
                "push a newer ONNX Runtime, or build the runner with older headers"};
  Ort::InitApi(api);
  return {library, version};
}

Opening read_opening(Arguments& words, void* library) {
  Opening how;
  how.threads = static_cast<int>(words.whole("threads", 1));
  how.arena = words.whole("arena", 1) != 0;
  how.entries = words.pairs("entry");
  how.device_entries = words.pairs("device_entry");
  how.options = words.pairs("option");
  how.provider = words.one("provider");
  how.plugin = words.one("plugin");
  how.function = words.one("function");
  how.flags = static_cast<unsigned>(words.whole("flags", 0));
  how.library = library;
  const std::string hex = words.one("append");
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    how.append += static_cast<char>(std::strtol(hex.substr(i, 2).c_str(), nullptr, 16));
  return how;
}

std::function<std::unique_ptr<Model>(Opener&)> read_model(Arguments& words, bool on_device) {
  const GrowingPlan growing{words.one("graph"),           words.one("first_logit"),  words.whole("shared", 0) != 0,
                            words.whole("tight", 0) != 0, words.whole("context", 1), words.whole("chunk", 128)};
  const StaticPlan chains{words.one("host"), words.all("prefill"), words.all("decode"), on_device};
  if (growing.graph.empty() == (chains.host.empty() || chains.prefill.empty() || chains.decode.empty()))
    throw Error{"no model was named", "pass graph=FILE, or host=FILE prefill=FILE decode=FILE"};
  return [growing, chains](Opener& opener) -> std::unique_ptr<Model> {
    if (growing.graph.empty()) return std::make_unique<StaticModel>(opener, chains);
    return std::make_unique<GrowingModel>(opener, growing);
  };
}

int64_t best(const std::vector<float>& logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

// Random tokens, so that no cache of prompts can help; the same in every run.
class RandomTokens {
 public:
  explicit RandomTokens(int64_t vocab) : next_(0, vocab - 1) {}
  Tokens operator()(int64_t count) {
    Tokens made(static_cast<size_t>(count));
    for (auto& token : made) token = next_(engine_);
    return made;
  }

 private:
  std::mt19937_64 engine_{0};
  std::uniform_int_distribution<int64_t> next_;
};

// Measured rounds over all workloads, as edgekit/measure/latency.py.
class Bench {
 public:
  Bench(Model& model, const Task& task) : model_(model), task_(task), random_(model.vocab()) {}

  void run() {
    for (int64_t i = 0; i < task_.warmup + task_.repetitions; i++) {
      timed_ = i >= task_.warmup;
      for (int64_t count : task_.prompts) prompt(count);
      model_.rewind(0);
      for (const auto& decode : task_.decodes)
        if (timed_ || &decode == &task_.decodes.front()) this->decode(decode);
    }
    for (const auto& name : order_) series(name, units_[name], samples_[name]);
  }

 private:
  void prompt(int64_t count) {
    const Tokens tokens = random_(count);
    const std::string name = std::to_string(count);
    model_.rewind(0);
    say("pp" + name + " begin");
    const double started = now();
    const auto& logits = model_.feed(tokens);
    const double fed = now();
    keep_ = best(logits);
    const double chosen = now();
    say("pp" + name + " end");
    add("pp" + name, "tok/s", static_cast<double>(count) / (fed - started));
    add("ttft" + name, "s", chosen - started);
  }

  void decode(const Decode& decode) {
    const std::string at = "@" + std::to_string(decode.depth), name = "tg" + std::to_string(decode.count) + at;
    if (model_.length() > decode.depth) model_.rewind(0);
    if (model_.length() < decode.depth) model_.feed(random_(decode.depth - model_.length()));
    double sum = 0;
    say(name + " begin");
    for (int64_t token : random_(decode.count)) {
      const double started = now();
      model_.feed({token});
      const double seconds = now() - started;
      add("tpot" + at, "s", seconds);
      sum += seconds;
    }
    say(name + " end");
    add(name, "tok/s", static_cast<double>(decode.count) / sum);
  }

  void say(const std::string& name) const {
    if (timed_) mark(name);
  }

  void add(const std::string& name, const char* unit, double sample) {
    if (!timed_) return;
    if (!samples_.count(name)) order_.push_back(name);
    units_[name] = unit;
    samples_[name].push_back(sample);
  }

  Model& model_;
  const Task& task_;
  RandomTokens random_;
  std::vector<std::string> order_;
  std::map<std::string, std::vector<double>> samples_;
  std::map<std::string, const char*> units_;
  bool timed_ = false;
  volatile int64_t keep_ = 0;  // the choice of a token is part of the time; the compiler must not drop it
};

// Decodes at the first depth for some seconds, printing a Rate each second. After STRETCH tokens it starts again there,
// so that depth bends no curve; as edgekit/lab/driver/program.py.
void sustain(Model& model, const Task& task) {
  const int64_t stretch = std::min<int64_t>(STRETCH, model.context() - task.depth);
  if (stretch < 1)
    throw Error{"a depth of " + std::to_string(task.depth) + " tokens leaves no room in the context of " +
                    std::to_string(model.context()),
                "use a smaller depth"};
  RandomTokens random(model.vocab());
  if (task.depth) model.feed(random(task.depth));
  const Tokens tokens = random(stretch);
  const std::string name = "sustain@" + std::to_string(task.depth);
  mark(name + " begin");
  const double begin = now();
  double last = begin;
  int64_t done = 0;
  for (double at = begin; at - begin < task.seconds; at = now()) {
    if (at - last >= 1) {
      print("rate", {{"at", number(at)}, {"seconds", number(at - last)}, {"tokens", std::to_string(done)}});
      last = at;
      done = 0;
    }
    if (model.length() >= task.depth + stretch) model.rewind(task.depth);
    model.feed({tokens[static_cast<size_t>(model.length() - task.depth)]});
    done++;
  }
  if (now() - last >= 1)
    print("rate", {{"at", number(now())}, {"seconds", number(now() - last)}, {"tokens", std::to_string(done)}});
  mark(name + " end");
}

// Loads all cores in a pattern that a meter's trace shows too, so that its clock can be aligned.
void burst() {
  const double pauses[] = {2.1, 3.3, 2.7};  // as edgekit/lab/driver/program.py
  for (int i = 0; i < 3; i++) {
    const std::string name = "burst " + std::to_string(i + 1);
    mark(name + " begin");
    const double end = now() + 1.5;
    std::vector<std::thread> busy(std::max(1u, std::thread::hardware_concurrency()));
    for (auto& thread : busy)
      thread = std::thread([end] {
        volatile double sum = 0;
        while (now() < end)
          for (int k = 0; k < 100000; k++) sum = sum * 0.999 + k;
      });
    for (auto& thread : busy) thread.join();
    mark(name + " end");
    std::this_thread::sleep_for(std::chrono::duration<double>(pauses[i]));
  }
}

// Does nothing for a while, so that a meter shows the power of an idle device.
void rest() {
  mark("idle begin");
  std::this_thread::sleep_for(std::chrono::duration<double>(5));  // as edgekit/lab/driver/program.py
  mark("idle end");
}

void generate(Model& model, const Task& task) {
  if (static_cast<int64_t>(task.tokens.size()) >= model.context())
    throw Error{"the prompt's " + std::to_string(task.tokens.size()) + " tokens leave no room in the context of " +
                    std::to_string(model.context()) + " tokens",
                "shorten the prompt"};
  int64_t token = best(model.feed(task.tokens));
  for (int64_t made = 1;; made++) {
    print("token", {{"at", number(now())}, {"id", std::to_string(token)}});
    const bool ended = std::find(task.stop.begin(), task.stop.end(), token) != task.stop.end();
    if (ended || made == task.max_tokens || model.length() == model.context()) return;
    token = best(model.feed({token}));
  }
}

void measure(const Task& task, const Opening& how, const std::function<std::unique_ptr<Model>(Opener&)>& make) {
  Opener opener(how);
  std::unique_ptr<Model> model;
  std::vector<double> loads;
  mark("load begin");
  for (int64_t i = 0; i < task.loads; i++) {
    model.reset();
    const double started = now();
    model = make(opener);
    loads.push_back(now() - started);
  }
  mark("load end");
  series("load", "s", loads);
  if (task.kind == "bench") {
    Bench(*model, task).run();
  } else if (task.kind == "sustain") {
    sustain(*model, task);
  } else if (task.kind == "generate") {
    generate(*model, task);
  } else {
    throw Error{"this runner cannot do '" + task.kind + "'", "ask it to do bench, sustain or generate"};
  }
  if (const auto peak = read_field("/proc/self/status", "VmHWM")) series("peak_rss", "B", {*peak * 1024});
}

void work(int count, char** given) {
  Arguments words(count, given);
  const Task task = read_task(words);
  const std::string root = words.one("root");
  const Meter meter(root, words.one("power"));
  const double power_seconds = words.real("power_seconds", 0.1);
  const auto [library, version] = load_runtime(words.one("runtime"));
  const Opening how = read_opening(words, library);
  const auto make = read_model(words, !how.provider.empty() || !how.function.empty());
  words.refuse_unread();
  print("hello", {{"at", number(now())},
                  {"driver", in_quotes(std::string("edgekit-runner ") + VERSION)},
                  {"python", "\"\""},
                  {"versions", list({list({in_quotes("edgekit-runner"), in_quotes(VERSION)}),
                                     list({in_quotes("onnxruntime"), in_quotes(version)})})},
                  {"pid", std::to_string(getpid())},
                  {"boot_id", in_quotes(read_word("/proc/sys/kernel/random/boot_id"))}});
  const Watch watch(root, meter, power_seconds);
  if (task.bursts) {
    burst();
    rest();
  }
  measure(task, how, make);
  if (task.bursts) {
    rest();
    burst();
  }
}

int fail(const std::string& message, const std::string& hint) {
  print("failed", {{"at", number(now())}, {"message", in_quotes(message)}, {"hint", in_quotes(hint)}});
  return 1;
}

}  // namespace

int main(int count, char** given) {
  lines();
  try {
    work(count, given);
  } catch (const Error& error) {
    return fail(error.message, error.hint);
  } catch (const std::exception& error) {  // ONNX Runtime's are Ort::Exception
    return fail(error.what(), "run `edgekit verify` to check that the bundle is intact");
  }
  print("done", {{"at", number(now())}, {"measurement", "null"}});
  return 0;
}
