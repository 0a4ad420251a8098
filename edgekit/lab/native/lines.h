// The driver's lines: one JSON object each, as edgekit/types/lab.py defines them.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <initializer_list>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace edgekit {

// What is wrong, and what to do about it.
struct Error {
  std::string message, hint;
};

// Seconds of the clock that no one sets and that counts while the device sleeps.
inline double now() {
  timespec time{};
  clock_gettime(CLOCK_BOOTTIME, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

inline std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[40];
  std::snprintf(text, sizeof text, "%.12g", value);
  return text;
}

inline std::string in_quotes(const std::string& text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    char escaped[8];
    // Bytes outside of ASCII may be no UTF-8: names of thermal zones are a stranger's.
    if (c < 0x20 || c >= 0x7f) {
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c >= 0x7f ? 0xfffd : c);
      out += escaped;
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += static_cast<char>(c);
    }
  }
  return out + '"';
}

inline std::string list(const std::vector<std::string>& items) {
  std::string out = "[";
  for (const auto& item : items) out += (out.size() > 1 ? ", " : "") + item;
  return out + "]";
}

// The stream of the lines. Vendors' libraries print to stdout too: from the first call on, that goes to stderr.
inline FILE* lines() {
  static FILE* stream = [] {
    FILE* own = fdopen(dup(STDOUT_FILENO), "w");
    dup2(STDERR_FILENO, STDOUT_FILENO);
    return own;
  }();
  return stream;
}

// Prints {"kind": {"key": value, ...}}, from several threads; the values are JSON.
inline void print(const char* kind, std::initializer_list<std::pair<const char*, std::string>> fields) {
  std::string out = "{" + in_quotes(kind) + ": {";
  bool first = true;
  for (const auto& [key, value] : fields) {
    out += (first ? "" : ", ") + in_quotes(key) + ": " + value;
    first = false;
  }
  static std::mutex lock;
  const std::lock_guard<std::mutex> held(lock);
  std::fprintf(lines(), "%s}}\n", out.c_str());
  std::fflush(lines());
}

inline void mark(const std::string& name) { print("mark", {{"at", number(now())}, {"name", in_quotes(name)}}); }

inline void series(const std::string& name, const char* unit, const std::vector<double>& samples) {
  std::vector<std::string> items;
  for (double sample : samples) items.push_back(number(sample));
  print("series", {{"name", in_quotes(name)}, {"unit", in_quotes(unit)}, {"samples", list(items)}});
}

}  // namespace edgekit
