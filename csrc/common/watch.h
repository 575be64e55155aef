// Whether Python's tensors are still what they were. It looks at every call of a fused chain, so it is not in Python;
// it asks the tensors as Python would (_version, data_ptr()) and knows nothing of torch.
//
// A change shows in the object, its memory or its version counter. Writes through tensor.data do not show there, so a
// few elements are compared too, by address where the tensor still has its memory: fastcv/optimizer/watch.py says
// which.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace fastcv {

class Watch {
 public:
  using Element = std::pair<uintptr_t, size_t>;  // address and bytes, at most 8

  // Tensors or None. None of them is kept alive.
  Watch(const pybind11::sequence& tensors, const std::vector<Element>& elements) {
    for (const pybind11::handle t : tensors) {
      if (t.is_none()) {
        seen_.emplace_back();
        continue;
      }
      seen_.push_back({pybind11::weakref(t), address_of(t), version_of(t)});
    }
    for (const auto& [address, bytes] : elements) {
      if (bytes > sizeof(uint64_t)) throw pybind11::value_error("Watch: an element has at most 8 bytes");
      elements_.push_back({reinterpret_cast<const void*>(address), bytes, 0});
      elements_.back().value = elements_.back().now();
    }
  }

  // True if these are the same tensors and none has changed.
  bool holds(const pybind11::sequence& tensors) const {
    if (tensors.size() != seen_.size()) return false;
    size_t i = 0;
    for (const pybind11::handle t : tensors) {
      const Seen& seen = seen_[i++];
      if (t.is_none() || !seen.reference) {
        if (t.is_none() && !seen.reference) continue;
        return false;
      }
      if (!refers_to(seen.reference, t) || version_of(t) != seen.version || address_of(t) != seen.address) return false;
    }
    for (const Probe& e : elements_)
      if (e.now() != e.value) return false;
    return true;
  }

 private:
  struct Seen {
    pybind11::object reference;  // weak; empty for None
    uintptr_t address = 0;
    int64_t version = 0;
  };
  struct Probe {
    const void* at;
    size_t bytes;
    uint64_t value;
    uint64_t now() const {
      uint64_t bits = 0;
      std::memcpy(&bits, at, bytes);
      return bits;
    }
  };

  static bool refers_to(const pybind11::object& reference, pybind11::handle t) {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject* known = nullptr;
    if (PyWeakref_GetRef(reference.ptr(), &known) < 0) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(known).ptr() == t.ptr();
#else
    return PyWeakref_GetObject(reference.ptr()) == t.ptr();
#endif
  }
  static int64_t version_of(pybind11::handle t) {
    static PyObject* const name = PyUnicode_InternFromString("_version");
    const auto version = pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttr(t.ptr(), name));
    if (!version) throw pybind11::error_already_set();
    return PyLong_AsLongLong(version.ptr());
  }
  static uintptr_t address_of(pybind11::handle t) {
    static PyObject* const name = PyUnicode_InternFromString("data_ptr");
    const auto address = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallMethodNoArgs(t.ptr(), name));
    if (!address) throw pybind11::error_already_set();
    return PyLong_AsSize_t(address.ptr());
  }

  std::vector<Seen> seen_;
  std::vector<Probe> elements_;
};

}  // namespace fastcv
