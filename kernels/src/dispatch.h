// Which path is used.
#pragma once

#include <string>
#include <vector>

#include "path.h"

namespace headrace {

// The names of those that work on this CPU, the fastest first.
std::vector<std::string> paths();

// That in use: the fastest, if nobody has said otherwise.
const Path& path();

// Uses another from now on. Throws std::invalid_argument for one that does not work here.
void use(const std::string& name);

}  // namespace headrace
