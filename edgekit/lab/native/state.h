// The device's state over time, as edgekit/measure/conditions.py: heat, clocks, governor, battery, load, memory.
#pragma once

#include <dirent.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "lines.h"

namespace edgekit {

inline bool exists(const std::string& path) {
  struct stat facts {};
  return stat(path.c_str(), &facts) == 0;
}

inline std::string read_word(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  std::getline(file, word);
  return word;
}

inline std::optional<double> to_number(const std::string& word) {
  char* end = nullptr;
  const double value = std::strtod(word.c_str(), &end);
  if (end == word.c_str() || *end || !std::isfinite(value)) return std::nullopt;
  return value;
}

inline std::optional<double> read_number(const std::string& path) { return to_number(read_word(path)); }

// The number after a name in files such as /proc/meminfo, in the file's unit.
inline std::optional<double> read_field(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.rfind(name + ":", 0) == 0) return std::strtod(line.c_str() + name.size() + 1, nullptr);
  return std::nullopt;
}

// A folder's entries that start and end so, by the number in between, then by name.
inline std::vector<std::string> entries(const std::string& folder, const std::string& start = "",
                                        const std::string& end = "") {
  std::vector<std::pair<long, std::string>> found;
  if (DIR* open = opendir(folder.c_str())) {
    while (const dirent* entry = readdir(open)) {
      const std::string name = entry->d_name;
      if (name[0] == '.' || name.size() < start.size() + end.size() || name.rfind(start, 0) != 0) continue;
      if (name.compare(name.size() - end.size(), end.size(), end) != 0) continue;
      const std::string middle = name.substr(start.size(), name.size() - start.size() - end.size());
      const bool number = !middle.empty() && middle.find_first_not_of("0123456789") == std::string::npos;
      if (number || start.empty()) found.emplace_back(number ? std::strtol(middle.c_str(), nullptr, 10) : 0, name);
    }
    closedir(open);
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (const auto& [number, name] : found) paths.push_back(folder + "/" + name);
  return paths;
}

inline std::string or_null(const std::optional<double>& value, double scale = 1) {
  return value ? number(*value * scale) : "null";
}

// Reads and prints Samples.
class Observer {
 public:
  explicit Observer(std::string root) : root_(std::move(root)) {}

  void print_sample() {
    const auto [percent, plugged] = supplies();
    const auto free = read_field(root_ + "/proc/meminfo", "MemAvailable");
    print("sample", {{"at", number(now())},
                     {"zones", zones()},
                     {"clocks_mhz", clocks()},
                     {"governor", governor()},
                     {"battery_percent", or_null(percent)},
                     {"plugged", plugged ? in_quotes(*plugged) : "null"},
                     {"background", or_null(background())},
                     {"free_memory_bytes", or_null(free, 1024)}});
  }

 private:
  using Battery = std::pair<std::optional<double>, std::optional<std::string>>;

  std::string zones() const {
    std::vector<std::string> found;
    const auto add = [&found](const std::string& name, const std::string& file) {
      const auto degrees = read_number(file);
      // Others are a sensor that is off.
      if (degrees && *degrees >= -40e3 && *degrees <= 150e3)
        found.push_back(list({in_quotes(name), number(*degrees / 1e3)}));
    };
    for (const auto& zone : entries(root_ + "/sys/class/thermal", "thermal_zone"))
      add(read_word(zone + "/type"), zone + "/temp");
    for (const auto& chip : entries(root_ + "/sys/class/hwmon", "hwmon"))
      for (const auto& sensor : entries(chip, "temp", "_input")) {
        const std::string path = sensor.substr(0, sensor.size() - 6), label = read_word(path + "_label");
        add(read_word(chip + "/name") + " " + (label.empty() ? path.substr(chip.size() + 1) : label), sensor);
      }
    return list(found);
  }

  std::vector<std::string> cpus() const { return entries(root_ + "/sys/devices/system/cpu", "cpu"); }

  std::string clocks() const {
    std::vector<std::string> found;
    for (const auto& cpu : cpus())
      if (exists(cpu + "/cpufreq"))  // a core that is off has no clock
        found.push_back(number(read_number(cpu + "/cpufreq/scaling_cur_freq").value_or(0) / 1e3));
    return list(found);
  }

  std::string governor() const {
    std::set<std::string> found;
    for (const auto& cpu : cpus()) found.insert(read_word(cpu + "/cpufreq/scaling_governor"));
    std::string all;
    for (const auto& name : found)
      if (!name.empty()) all += (all.empty() ? "" : ", ") + name;
    return in_quotes(all);
  }

  Battery supplies() {
    std::vector<double> levels;
    std::optional<std::string> plugged, otherwise;
    for (const auto& supply : entries(root_ + "/sys/class/power_supply")) {
      if (read_word(supply + "/scope") == "Device") continue;
      const std::string type = read_word(supply + "/type"), online = read_word(supply + "/online");
      if (type == "Battery") {
        if (const auto level = read_number(supply + "/capacity")) levels.push_back(*level);
        const std::string status = read_word(supply + "/status");
        if (status == "Discharging") otherwise = "";
        // The gauge does not say from where.
        if ((status == "Charging" || status == "Full") && !otherwise) otherwise = "ac";
      } else if (!online.empty() && online != "0" && !plugged) {
        if (type == "Mains") plugged = "ac";
        if (type.rfind("USB", 0) == 0) plugged = "usb";
        if (type == "Wireless") plugged = "wireless";
      }
    }
    if (!plugged) plugged = otherwise;
    if (levels.empty()) return ask_android();
    double sum = 0;
    for (double level : levels) sum += level;
    return {sum / static_cast<double>(levels.size()), plugged};
  }

  // Android's shell may not read the battery's files. Asked rarely, since that starts a process.
  Battery ask_android() {
    const std::string dumpsys = root_ + "/system/bin/dumpsys";
    if (!exists(dumpsys) || asked_++ % 15) return android_;
    android_ = {};
    FILE* told = popen(("'" + dumpsys + "' battery").c_str(), "r");
    if (!told) return android_;
    double scale = 100;
    char line[256], name[64], word[64];
    while (std::fgets(line, sizeof line, told)) {
      if (std::sscanf(line, " %63[^:]: %63s", name, word) != 2) continue;
      const std::string key = name;
      const bool on = std::string(word) == "true";
      if (key == "level") android_.first = to_number(word);
      if (key == "scale") scale = to_number(word).value_or(100);
      if (key == "AC powered") android_.second = on ? "ac" : "";
      if (on && key == "USB powered") android_.second = "usb";
      if (on && key == "Wireless powered") android_.second = "wireless";
    }
    pclose(told);
    if (android_.first && scale > 0) *android_.first *= 100 / scale;
    return android_;
  }

  // Cores' worth of time that other processes took since the last call.
  std::optional<double> background() {
    std::ifstream file(root_ + "/proc/stat");
    std::string cpu;
    double user, nice, system, idle, wait, irq, soft, stolen = 0;
    if (!(file >> cpu >> user >> nice >> system >> idle >> wait >> irq >> soft >> stolen)) return std::nullopt;
    rusage own{};
    getrusage(RUSAGE_SELF, &own);
    const double mine = static_cast<double>(own.ru_utime.tv_sec + own.ru_stime.tv_sec) +
                        static_cast<double>(own.ru_utime.tv_usec + own.ru_stime.tv_usec) / 1e6;
    const double all = (user + nice + system + irq + soft + stolen) / static_cast<double>(sysconf(_SC_CLK_TCK));
    const double at = now(), elapsed = at - seen_at_, others = all - mine;
    std::optional<double> found;
    if (seen_at_ > 0 && elapsed > 0) found = std::max(0.0, (others - seen_) / elapsed);
    seen_ = others;
    seen_at_ = at;
    return found;
  }

  std::string root_;
  Battery android_;
  int asked_ = 0;
  double seen_ = 0, seen_at_ = 0;
};

// A meter that is files: their numbers and a scale, multiplied, are watts or joules.
class Meter {
 public:
  // text: "SCALE:FILE*FILE", "" for none.
  Meter(std::string root, const std::string& text) : root_(std::move(root)) {
    if (text.empty()) return;
    const auto colon = text.find(':');
    scale_ = std::strtod(text.c_str(), nullptr);
    std::stringstream names(colon == std::string::npos ? "" : text.substr(colon + 1));
    for (std::string file; std::getline(names, file, '*');) files_.push_back(file);
    if (files_.empty()) throw Error{"power=" + text + " names no file", "pass power=SCALE:FILE, or SCALE:FILE*FILE"};
  }

  bool present() const { return !files_.empty(); }

  void print_power() const {
    double value = scale_;
    for (const auto& file : files_) {
      const auto factor = read_number(root_ + file);
      if (!factor) return;  // a reading that fails is left out: the host's integral knows gaps
      value *= *factor;
    }
    print("power", {{"at", number(now())}, {"value", number(value)}});
  }

 private:
  std::string root_;
  std::vector<std::string> files_;
  double scale_ = 1;
};

// Prints a Sample now, at the end and each second in between, and a meter's Power more often, from a sleeping thread.
class Watch {
 public:
  Watch(const std::string& root, Meter meter, double power_seconds)
      : observer_(root), meter_(std::move(meter)), period_(std::min(meter_.present() ? power_seconds : 1.0, 1.0)) {
    thread_ = std::thread([this] { run(); });
  }
  ~Watch() {
    {
      const std::lock_guard<std::mutex> held(lock_);
      ended_ = true;
    }
    waker_.notify_all();
    thread_.join();
  }

 private:
  void run() {
    std::unique_lock<std::mutex> held(lock_);
    double due = now();
    do {
      if (now() >= due) {
        observer_.print_sample();
        due += 1;
      }
      if (meter_.present()) meter_.print_power();
    } while (!waker_.wait_for(held, std::chrono::duration<double>(period_), [this] { return ended_; }));
    observer_.print_sample();
  }

  Observer observer_;
  Meter meter_;
  double period_;
  bool ended_ = false;
  std::mutex lock_;
  std::condition_variable waker_;
  std::thread thread_;
};

}  // namespace edgekit
