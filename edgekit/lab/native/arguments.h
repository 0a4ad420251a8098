// The task, as `key=value` words that the host makes. A key may come several times.
#pragma once

#include <cstdlib>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "lines.h"

namespace edgekit {

using Pairs = std::vector<std::pair<std::string, std::string>>;

inline std::pair<std::string, std::string> split(const std::string& word, char at) {
  const auto place = word.find(at);
  if (place == std::string::npos) throw Error{"'" + word + "' has no '" + at + "'", "write key=value"};
  return {word.substr(0, place), word.substr(place + 1)};
}

class Arguments {
 public:
  Arguments(int count, char** words) {
    for (int i = 1; i < count; i++) given_.push_back(split(words[i], '='));
  }

  std::vector<std::string> all(const std::string& key) {
    read_.insert(key);
    std::vector<std::string> found;
    for (const auto& [name, value] : given_)
      if (name == key) found.push_back(value);
    return found;
  }

  std::string one(const std::string& key, const std::string& otherwise = "") {
    const auto found = all(key);
    return found.empty() ? otherwise : found.back();
  }

  double real(const std::string& key, double otherwise) {
    const auto text = one(key);
    return text.empty() ? otherwise : to_number(key, text);
  }

  int64_t whole(const std::string& key, int64_t otherwise) {
    return static_cast<int64_t>(real(key, static_cast<double>(otherwise)));
  }

  // Numbers with commas between them.
  std::vector<int64_t> wholes(const std::string& key) {
    std::vector<int64_t> found;
    std::stringstream text(one(key));
    for (std::string item; std::getline(text, item, ',');)
      found.push_back(static_cast<int64_t>(to_number(key, item)));
    return found;
  }

  // Values that are pairs themselves: entry=session.some.key=1.
  Pairs pairs(const std::string& key) {
    Pairs found;
    for (const auto& word : all(key)) found.push_back(split(word, '='));
    return found;
  }

  void refuse_unread() const {
    for (const auto& [name, value] : given_)
      if (!read_.count(name))
        throw Error{"this runner does not know '" + name + "'", "build it again from the same edgekit"};
  }

 private:
  static double to_number(const std::string& key, const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end || !std::isfinite(value)) throw Error{key + "=" + text + " is no number", "pass a number"};
    return value;
  }

  Pairs given_;
  std::set<std::string> read_;
};

}  // namespace edgekit
