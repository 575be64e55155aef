// Whether a layer's next call is like one that was looked at thoroughly: the same kind of input, modules as they were,
// torch in the same modes. One look from C++ in place of some forty from Python, which between two kernels finds
// nothing of its own in the caches. Like Watch it asks Python's objects and knows nothing of torch.
//
// It holds namespaces of modules, which hold it in turn: traverse and clear are for Python's collector of such cycles.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "common/watch.h"

namespace fastcv {

class Steady {
 public:
  using Place = std::pair<pybind11::dict, pybind11::object>;  // a namespace and a name in it

  // x: the input. tensors: names of tensors or of None, as watch.h watches them, with their elements. values: names of
  // things that must stay equal. empty: names of dicts that must be empty. absent: names that must not appear. modes:
  // functions without arguments that must return the same again.
  Steady(const pybind11::object& x, std::vector<Place> tensors, const std::vector<Watch::Element>& elements,
         const std::vector<Place>& values, std::vector<Place> empty, std::vector<Place> absent,
         const std::vector<pybind11::function>& modes)
      : type_(pybind11::type::of(x)),
        dtype_(x.attr("dtype")),
        layout_(x.attr("layout")),
        sizes_(numbers(x.attr("shape"))),
        strides_(numbers(x.attr("stride")())),
        tensors_(std::move(tensors)),
        watch_(current(tensors_), elements),
        empty_(std::move(empty)),
        absent_(std::move(absent)) {
    for (const Place& place : values) {
      const pybind11::handle value = at(place);
      if (!value) throw pybind11::key_error(pybind11::str(place.second));
      values_.emplace_back(place, pybind11::reinterpret_borrow<pybind11::object>(value));
    }
    for (const pybind11::function& mode : modes) modes_.emplace_back(mode, mode());
  }

  // True if x is of that kind, whatever its first size, and everything else is as it was.
  bool holds(pybind11::handle x) const {
    if (Py_TYPE(x.ptr()) != reinterpret_cast<PyTypeObject*>(type_.ptr()) || !same_kind(x)) return false;
    for (const auto& [mode, result] : modes_) {
      const auto now = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallNoArgs(mode.ptr()));
      if (!now) throw pybind11::error_already_set();
      if (!equal(now, result)) return false;
    }
    for (const auto& [place, value] : values_) {
      const pybind11::handle now = at(place);
      if (!now || !equal(now, value)) return false;
    }
    for (const Place& place : empty_) {
      const pybind11::handle now = at(place);
      if (!now || !PyDict_Check(now.ptr()) || PyDict_GET_SIZE(now.ptr()) != 0) return false;
    }
    for (const Place& place : absent_)
      if (at(place)) return false;
    return watch_.holds(current(tensors_));
  }

  int traverse(visitproc visit, void* arg) const {
    for (const auto* places : {&tensors_, &empty_, &absent_})
      for (const Place& place : *places) Py_VISIT(place.first.ptr());
    for (const auto& [place, value] : values_) {
      Py_VISIT(place.first.ptr());
      Py_VISIT(value.ptr());
    }
    for (const auto& [mode, result] : modes_) {
      Py_VISIT(mode.ptr());
      Py_VISIT(result.ptr());
    }
    return 0;
  }
  // It holds nothing and confirms nothing from here on.
  void clear() {
    type_ = {};
    for (auto* places : {&tensors_, &empty_, &absent_}) std::vector<Place>().swap(*places);
    decltype(values_)().swap(values_);
    decltype(modes_)().swap(modes_);
  }

 private:
  // What stands under the name, or null.
  static pybind11::handle at(const Place& place) {
    PyObject* const found = PyDict_GetItemWithError(place.first.ptr(), place.second.ptr());
    if (found == nullptr && PyErr_Occurred() != nullptr) throw pybind11::error_already_set();
    return found;
  }
  static pybind11::tuple current(const std::vector<Place>& places) {
    pybind11::tuple tensors(places.size());
    for (size_t i = 0; i < places.size(); ++i) {
      const pybind11::handle found = at(places[i]);
      tensors[i] = found ? pybind11::reinterpret_borrow<pybind11::object>(found) : pybind11::none();
    }
    return tensors;
  }
  static bool equal(pybind11::handle a, pybind11::handle b) {
    if (a.is(b)) return true;
    const int same = PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ);
    if (same < 0) throw pybind11::error_already_set();
    return same == 1;
  }
  static std::vector<int64_t> numbers(const pybind11::object& values) { return values.cast<std::vector<int64_t>>(); }

  bool same_kind(pybind11::handle x) const {
    static PyObject* const shape = PyUnicode_InternFromString("shape");
    static PyObject* const stride = PyUnicode_InternFromString("stride");
    static PyObject* const dtype = PyUnicode_InternFromString("dtype");
    static PyObject* const layout = PyUnicode_InternFromString("layout");
    static PyObject* const is_cpu = PyUnicode_InternFromString("is_cpu");
    const auto get = [&](PyObject* name) { return owned(PyObject_GetAttr(x.ptr(), name)); };
    if (!get(dtype).is(dtype_) || !get(layout).is(layout_) || get(is_cpu).ptr() != Py_True) return false;
    return same_numbers(get(shape), sizes_, 1) &&
           same_numbers(owned(PyObject_CallMethodNoArgs(x.ptr(), stride)), strides_, 0);
  }
  // Of the sizes the first may be another, but not zero.
  static bool same_numbers(const pybind11::object& tuple, const std::vector<int64_t>& numbers, size_t from) {
    if (!PyTuple_Check(tuple.ptr()) || PyTuple_GET_SIZE(tuple.ptr()) != static_cast<Py_ssize_t>(numbers.size()))
      return false;
    for (size_t i = 0; i < numbers.size(); ++i) {
      const int64_t now = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i)));
      if (now == -1 && PyErr_Occurred() != nullptr) throw pybind11::error_already_set();
      if (i < from ? now == 0 : now != numbers[i]) return false;
    }
    return true;
  }
  static pybind11::object owned(PyObject* object) {
    if (object == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(object);
  }

  pybind11::handle type_;
  pybind11::object dtype_, layout_;
  std::vector<int64_t> sizes_, strides_;
  std::vector<Place> tensors_;
  Watch watch_;
  std::vector<std::pair<Place, pybind11::object>> values_;
  std::vector<Place> empty_, absent_;
  std::vector<std::pair<pybind11::function, pybind11::object>> modes_;
};

}  // namespace fastcv
