// The device's state from /sys and /proc: thermal zones, clocks, governor, battery, load, memory.
#pragma once

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "lines.h"

namespace edgekit {

inline std::string read_word(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  std::getline(file, word);
  return word;
}

inline std::optional<double> read_number(const std::string& path) {
  const std::string word = read_word(path);
  char* end = nullptr;
  const double value = std::strtod(word.c_str(), &end);
  if (end == word.c_str() || !std::isfinite(value)) return std::nullopt;
  return value;
}

// The number after a name in files such as /proc/meminfo, in the file's unit.
inline std::optional<double> read_field(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.rfind(name + ":", 0) == 0) return std::strtod(line.c_str() + name.size() + 1, nullptr);
  return std::nullopt;
}

// Folders whose names are a prefix and a number, by number: cpu0, cpu1 ... but not cpufreq.
inline std::vector<std::string> numbered(const std::string& folder, const std::string& prefix) {
  std::vector<long> found;
  if (DIR* open = opendir(folder.c_str())) {
    while (const dirent* entry = readdir(open)) {
      const std::string name = entry->d_name;
      if (name.size() > prefix.size() && name.rfind(prefix, 0) == 0 &&
          std::all_of(name.begin() + prefix.size(), name.end(), isdigit))
        found.push_back(std::strtol(name.c_str() + prefix.size(), nullptr, 10));
    }
    closedir(open);
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (long n : found) paths.push_back(folder + "/" + prefix + std::to_string(n));
  return paths;
}

inline std::vector<std::string> entries(const std::string& folder) {
  std::vector<std::string> found;
  if (DIR* open = opendir(folder.c_str())) {
    while (const dirent* entry = readdir(open))
      if (entry->d_name[0] != '.') found.push_back(folder + "/" + entry->d_name);
    closedir(open);
  }
  std::sort(found.begin(), found.end());
  return found;
}

inline std::string or_null(const std::optional<double>& value, double scale = 1) {
  return value ? number(*value * scale) : "null";
}

// Prints Sample lines, and Power lines of a meter that the host has found.
class State {
 public:
  // root: "" or the folder of a fixture. power: "SCALE:FILE*FILE": a scale and the files whose numbers are multiplied.
  State(std::string root, const std::string& power, double every) : root_(std::move(root)), every_(every) {
    if (power.empty()) return;
    const auto colon = power.find(':');
    scale_ = std::strtod(power.c_str(), nullptr);
    std::stringstream files(colon == std::string::npos ? "" : power.substr(colon + 1));
    for (std::string file; std::getline(files, file, '*');) meter_.push_back(file);
    if (meter_.empty()) throw Error{"power=" + power + " names no file", "pass power=SCALE:FILE, or SCALE:FILE*FILE"};
  }

  void sample() {
    std::vector<std::string> zones, clocks;
    for (const auto& zone : numbered(root_ + "/sys/class/thermal", "thermal_zone"))
      if (const auto degrees = read_number(zone + "/temp"))
        zones.push_back("[" + quoted(read_word(zone + "/type")) + ", " + number(*degrees / 1e3) + "]");
    const std::string cpus = root_ + "/sys/devices/system/cpu";
    for (const auto& cpu : numbered(cpus, "cpu"))
      if (const auto kilohertz = read_number(cpu + "/cpufreq/scaling_cur_freq"))
        clocks.push_back(number(*kilohertz / 1e3));
    const auto [percent, plugged] = battery();
    const auto free = read_field(root_ + "/proc/meminfo", "MemAvailable");
    print("sample", {{"at", number(now())},
                     {"zones", list(zones)},
                     {"clocks_mhz", list(clocks)},
                     {"governor", quoted(read_word(cpus + "/cpu0/cpufreq/scaling_governor"))},
                     {"battery_percent", or_null(percent)},
                     {"plugged", plugged},
                     {"background", or_null(background())},
                     {"free_memory_bytes", or_null(free, 1024)}});
    power();
  }

  // Prints a Power line if it is time for one.
  void tick() {
    if (!meter_.empty() && now() - measured_ >= every_) power();
  }

 private:
  std::pair<std::optional<double>, std::string> battery() const {
    std::optional<double> percent;
    std::string plugged = "null";
    for (const auto& supply : entries(root_ + "/sys/class/power_supply")) {
      const std::string type = read_word(supply + "/type");
      if (type == "Battery" && read_word(supply + "/scope") != "Device") {
        if (const auto level = read_number(supply + "/capacity")) percent = percent ? std::min(*percent, *level) : level;
        if (plugged == "null") plugged = "\"\"";
      } else if (read_word(supply + "/online") == "1") {
        plugged = type == "Mains" ? "\"ac\"" : type == "Wireless" ? "\"wireless\"" : "\"usb\"";
      }
    }
    return {percent, plugged};
  }

  // Cores' worth of time that other processes took since the last call.
  std::optional<double> background() {
    std::ifstream file(root_ + "/proc/stat");
    std::string cpu;
    double user, nice, system, idle, wait, irq, soft, steal = 0;
    if (!(file >> cpu >> user >> nice >> system >> idle >> wait >> irq >> soft >> steal)) return std::nullopt;
    rusage own{};
    getrusage(RUSAGE_SELF, &own);
    const double mine = static_cast<double>(own.ru_utime.tv_sec + own.ru_stime.tv_sec) +
                        static_cast<double>(own.ru_utime.tv_usec + own.ru_stime.tv_usec) / 1e6;
    const double all = (user + nice + system + irq + soft + steal) / static_cast<double>(sysconf(_SC_CLK_TCK));
    const double at = now(), elapsed = at - seen_at_, others = all - mine;
    std::optional<double> found;
    if (seen_at_ > 0 && elapsed > 0) found = std::max(0.0, (others - seen_) / elapsed);
    seen_ = others;
    seen_at_ = at;
    return found;
  }

  void power() {
    if (meter_.empty()) return;
    double value = scale_;
    for (const auto& file : meter_) {
      const auto factor = read_number(root_ + file);
      if (!factor) return;  // a reading that fails is left out: the host's integral knows gaps
      value *= *factor;
    }
    measured_ = now();
    print("power", {{"at", number(measured_)}, {"value", number(value)}});
  }

  std::string root_;
  std::vector<std::string> meter_;
  double scale_ = 1, every_ = 1, measured_ = 0, seen_ = 0, seen_at_ = 0;
};

}  // namespace edgekit
