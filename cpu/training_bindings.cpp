// Python bindings of what training needs between the levels: their first states, the heads, and
// the gradients of both. As in bindings.cpp, no call can read or write beyond an array.
#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "level_glue.hpp"

namespace octreenca {

namespace {

using Factor = std::array<int, 3>;

// Elements from one number to the next, z absent in 2-D.
template <class T>
struct Pixels {
  const T* data;
  int channels;
  std::int64_t channel_stride, z_stride, y_stride, x_stride;
};

// Origins within a level.
std::vector<Origin> places_of(const Coordinates& origins, std::size_t batch, int dimension) {
  for (const auto& row : origins) {
    for (const auto at : row) {
      if (at < 0 || at > std::numeric_limits<std::int32_t>::max()) {
        refuse("an origin is at " + std::to_string(at) + ", outside any level");
      }
    }
  }
  return origins_of(origins, batch, dimension);
}

// A channels-last batch (samples, axes, channels) and where its samples begin in the whole level.
template <class T>
Windows windows_of(const Array<T>& state, const Coordinates& origins, const char* name) {
  const auto axes = state.ndim();
  if (axes != 4 && axes != 5) refuse(std::string(name) + " must be (samples, axes, channels)");
  expect_aligned(state, name);
  const int dimension = static_cast<int>(axes) - 2;
  const auto channels = state.shape(axes - 1);
  if (channels < 1 || channels > kMostChannels) {
    refuse(std::string(name) + " has " + std::to_string(channels) + " channels, but must have 1 to " +
           std::to_string(kMostChannels));
  }
  return {shape_of(state, dimension, 1, channels),
          places_of(origins, static_cast<std::size_t>(state.shape(0)), dimension),
          static_cast<int>(channels)};
}

Factor factor_of(const std::vector<int>& row, int dimension) {
  if (row.size() != static_cast<std::size_t>(dimension)) refuse("a factor has a wrong length");
  for (const int f : row) {
    if (f != 1 && f != 2) refuse("a factor must be 1 or 2, got " + std::to_string(f));
  }
  return dimension == 2 ? Factor{1, row[0], row[1]} : Factor{row[0], row[1], row[2]};
}

std::int64_t cells_of(const Shape& shape, int axis) {
  return axis == 0 ? shape.depth : axis == 1 ? shape.height : shape.width;
}

// Every child must have its parent.
void check_parents(const Windows& child, const Windows& parent, const Factor& factor) {
  if (child.shape.dimension != parent.shape.dimension ||
      child.origins.size() != parent.origins.size()) {
    refuse("the parents must be as many samples with as many axes as the children");
  }
  for (std::size_t sample = 0; sample < child.origins.size(); ++sample) {
    for (int axis = 0; axis < 3; ++axis) {
      const std::int64_t cells = cells_of(child.shape, axis);
      const std::int64_t begin = axis_of(child.origins[sample], axis);
      const auto f = factor[static_cast<std::size_t>(axis)];
      const std::int64_t first = parent_at(child, parent, sample, axis, f, 0);
      const std::int64_t last = parent_at(child, parent, sample, axis, f, cells - 1);
      if (cells > 0 && (first < 0 || last >= cells_of(parent.shape, axis))) {
        const auto text = [](std::int64_t number) { return std::to_string(number); };
        refuse("axis " + text(axis - 3 + child.shape.dimension) + ": cells " + text(begin) + " to " +
               text(begin + cells - 1) + " have parents " + text(first) + " to " + text(last) +
               ", outside the " + text(cells_of(parent.shape, axis)) + " given");
      }
    }
  }
}

// The map from a level's parents, packed; none where there is no matrix, and then both must have as
// many channels.
template <class T>
class Maps {
 public:
  Maps(const std::optional<Array<T>>& from_parent, int inputs, int children, int parents,
       const std::string& kernels)
      : operations_(operations_of<T, T>(*options_of(kernels, 1, "auto", false, false).kernels)) {
    if (inputs < 0 || inputs >= std::min(children, parents)) {
      refuse("inputs must be at least 0 and below the " + std::to_string(children) + " and " +
             std::to_string(parents) + " channels, got " + std::to_string(inputs));
    }
    if (from_parent) {
      expect(*from_parent, {children - inputs, parents - inputs}, "from_parent");
      map_.emplace(from_parent->data(), inputs, children, parents, operations_.lanes);
      handing_.emplace(Handing<T>{*map_, operations_});
    } else if (children != parents) {
      refuse("parents of " + std::to_string(parents) + " and children of " +
             std::to_string(children) + " channels need a matrix from_parent");
    }
  }
  const Handing<T>* handing() const { return handing_ ? &*handing_ : nullptr; }

 private:
  const Operations<T, T>& operations_;
  std::optional<PackedMap<T>> map_;
  std::optional<Handing<T>> handing_;
};

template <class T>
void py_enter(const py::array_t<T>& image, const Coordinates& image_origins, Array<T>& state,
              const Coordinates& origins, const std::optional<Array<T>>& parent,
              const Coordinates& parent_origins, const std::vector<int>& factor,
              const std::optional<Array<T>>& from_parent, const std::string& kernels, int threads) {
  check_threads(threads);
  const Windows child = windows_of(state, origins, "state");
  const int dimension = child.shape.dimension;
  if (image.ndim() != dimension + 2 || image.shape(0) != state.shape(0) ||
      image.shape(1) >= child.channels) {
    refuse("image must be (samples, channels, axes), with fewer channels than the state");
  }
  expect_aligned(image, "image");
  const auto begins = places_of(image_origins, child.origins.size(), dimension);
  for (const Origin& begin : begins) {
    for (int axis = 3 - dimension; axis < 3; ++axis) {
      if (axis_of(begin, axis) + cells_of(child.shape, axis) >
          image.shape(axis - 3 + dimension + 2)) {
        refuse("the state's window reaches beyond the image");
      }
    }
  }
  const auto stride = [&](py::ssize_t axis) { return stride_of(image, axis, "image"); };
  const std::int64_t sample_stride = stride(0);
  const Pixels<T> whole = {image.data(), static_cast<int>(image.shape(1)), stride(1),
                           dimension == 3 ? stride(2) : 0, stride(dimension), stride(dimension + 1)};
  Factor factors = {1, 1, 1};
  Windows above{child.shape, child.origins, child.channels};
  if (parent) {
    above = windows_of(*parent, parent_origins, "parent");
    factors = factor_of(factor, dimension);
    check_parents(child, above, factors);
  }
  const Maps<T> maps(from_parent, static_cast<int>(image.shape(1)), child.channels, above.channels,
                     kernels);
  const T* parents = parent ? parent->data() : nullptr;
  T* data = state.mutable_data();
  if (state.size() == 0) return;
  py::gil_scoped_release release;
  enter<T>(
      child,
      [&](std::size_t sample) {
        Pixels<T> own = whole;
        const Origin& at = begins[sample];
        own.data += static_cast<std::int64_t>(sample) * sample_stride + at.z * whole.z_stride +
                    at.y * whole.y_stride + at.x * whole.x_stride;
        return own;
      },
      above, parents, factors.data(), parents ? maps.handing() : nullptr, data, threads);
}

template <class T>
void py_enter_backward(const Array<T>& gradient, const Coordinates& origins,
                       Array<T>& parent_gradient, const Coordinates& parent_origins, int inputs,
                       const std::vector<int>& factor, const std::optional<Array<T>>& parent,
                       const std::optional<Array<T>>& from_parent,
                       std::optional<Array<T>>& from_parent_gradient, const std::string& kernels,
                       int threads) {
  check_threads(threads);
  const Windows child = windows_of(gradient, origins, "gradient");
  const Windows above = windows_of(parent_gradient, parent_origins, "parent_gradient");
  const Factor factors = factor_of(factor, child.shape.dimension);
  check_parents(child, above, factors);
  const Maps<T> maps(from_parent, inputs, child.channels, above.channels, kernels);
  if (from_parent) {
    if (!parent || !from_parent_gradient) {
      refuse("with from_parent its gradient and the parents' states are needed");
    }
    const std::vector<py::ssize_t> axes(parent_gradient.shape(),
                                        parent_gradient.shape() + parent_gradient.ndim());
    expect(*parent, axes, "parent");
    expect(*from_parent_gradient, {from_parent->shape(0), from_parent->shape(1)},
           "from_parent_gradient");
  }
  const T* data = gradient.data();
  const T* states = from_parent ? parent->data() : nullptr;
  T* to = parent_gradient.mutable_data();
  T* map_gradient = from_parent ? from_parent_gradient->mutable_data() : nullptr;
  py::gil_scoped_release release;
  enter_backward<T>(child, data, above, inputs, factors.data(), maps.handing(), states, to,
                    map_gradient, threads);
}

template <class T>
void py_hand_down(const Array<T>& parents, const Array<T>& from_parent, Array<T>& to,
                  const std::string& kernels, int threads) {
  check_threads(threads);
  if (from_parent.ndim() != 2 || parents.ndim() < 1 || from_parent.shape(0) < 1 ||
      from_parent.shape(1) < 1 || std::max(from_parent.shape(0), from_parent.shape(1)) > kMostChannels) {
    refuse("from_parent must be (channels of the children, channels of the parents)");
  }
  const auto last = parents.ndim() - 1;
  std::vector<py::ssize_t> axes(parents.shape(), parents.shape() + last);
  axes.push_back(from_parent.shape(1));
  expect(parents, axes, "parents");
  axes.back() = from_parent.shape(0);
  expect(to, axes, "to");
  const Maps<T> maps(from_parent, 0, static_cast<int>(from_parent.shape(0)),
                     static_cast<int>(from_parent.shape(1)), kernels);
  const std::int64_t cells = to.size() / from_parent.shape(0);
  const T* data = parents.data();
  T* target = to.mutable_data();
  py::gil_scoped_release release;
  hand_down_all<T>(*maps.handing(), cells, data, target, threads);
}

// Of `values` (samples, heads, axes) and `state` (samples, axes, channels).
template <class T>
struct Heads {
  Heads(const Array<T>& values, const Array<T>& state, int inputs_, bool background_, int threads)
      : inputs(inputs_), background(background_) {
    check_threads(threads);
    const auto axes = state.ndim();
    if (axes < 3 || values.ndim() != axes || values.shape(0) != state.shape(0)) {
      refuse("values must be (samples, heads, axes) and the state (samples, axes, channels)");
    }
    for (py::ssize_t axis = 1; axis < axes - 1; ++axis) {
      if (values.shape(axis + 1) != state.shape(axis)) refuse("values and state have other axes");
    }
    for (py::ssize_t axis = 1; axis < axes - 1; ++axis) {
      cells = product({cells, state.shape(axis)}, "a state of these axes");
    }
    expect_aligned(values, "values");
    expect_aligned(state, "state");
    batch = state.shape(0);
    const auto wide = state.shape(axes - 1), count = values.shape(1) - (background ? 1 : 0);
    if (inputs < 0 || count < 1 || wide > kMostChannels || count > wide - inputs) {
      refuse(std::to_string(count) + " logits do not fit the " + std::to_string(wide) +
             " channels behind the image's " + std::to_string(inputs));
    }
    product({batch, cells, wide}, "a state of these axes");
    product({batch, cells, values.shape(1)}, "values of these axes");
    channels = static_cast<int>(wide);
    logits = static_cast<int>(count);
  }
  int inputs, channels = 0, logits = 0;
  bool background;
  std::int64_t batch = 0, cells = 1;
};

template <class T>
void py_heads(const Array<T>& state, int inputs, bool background, Array<T>& values, int threads) {
  const Heads<T> at(values, state, inputs, background, threads);
  const T* data = state.data();
  T* to = values.mutable_data();
  py::gil_scoped_release release;
  heads<T>(data, at.batch, at.cells, at.channels, at.inputs, at.logits, at.background, to, threads);
}

template <class T>
void py_heads_backward(const Array<T>& values, int inputs, bool background, Array<T>& gradient,
                       int threads) {
  const Heads<T> at(values, gradient, inputs, background, threads);
  const T* data = values.data();
  T* to = gradient.mutable_data();
  py::gil_scoped_release release;
  heads_backward<T>(data, at.batch, at.cells, at.channels, at.inputs, at.logits, at.background, to,
                    threads);
}

template <class T>
void define(py::module_& m) {
  m.def("enter", &py_enter<T>, py::arg("image").noconvert(), py::arg("image_origins"),
        py::arg("state").noconvert(), py::arg("origins"), py::arg("parent").noconvert().none(true),
        py::arg("parent_origins"), py::arg("factor"), py::arg("from_parent").noconvert().none(true),
        py::arg("kernels"), py::arg("threads"),
        "Fill a level's first state from its image and its parents' states.");
  m.def("enter_backward", &py_enter_backward<T>, py::arg("gradient").noconvert(),
        py::arg("origins"), py::arg("parent_gradient").noconvert(), py::arg("parent_origins"),
        py::arg("inputs"), py::arg("factor"), py::arg("parent").noconvert().none(true),
        py::arg("from_parent").noconvert().none(true),
        py::arg("from_parent_gradient").noconvert().none(true), py::arg("kernels"),
        py::arg("threads"),
        "Fill the gradient of the parents' states: sums over their children. Add to the gradient "
        "of from_parent, where that is given.");
  m.def("hand_down", &py_hand_down<T>, py::arg("parents").noconvert(),
        py::arg("from_parent").noconvert(), py::arg("to").noconvert(), py::arg("kernels"),
        py::arg("threads"),
        "Fill what children take of their parents' channels beside the image's (axes, channels).");
  m.def("heads", &py_heads<T>, py::arg("state").noconvert(), py::arg("inputs"),
        py::arg("background"), py::arg("values").noconvert(), py::arg("threads"),
        "Fill the logits of a state.");
  m.def("heads_backward", &py_heads_backward<T>, py::arg("values").noconvert(), py::arg("inputs"),
        py::arg("background"), py::arg("gradient").noconvert(), py::arg("threads"),
        "Fill the gradient of a state from that of its logits.");
}

}  // namespace

void define_training(py::module_& m) {
  define<float>(m);
  define<double>(m);
}

}  // namespace octreenca
