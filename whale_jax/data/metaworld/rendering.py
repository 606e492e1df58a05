"""Off-screen rendering: finds a GL library that works, and draws small upright frames at a tenth of the usual cost.

`python -m whale_jax.data.metaworld.rendering` prints the value for MUJOCO_GL.
If none works, it says on stderr what to install and exits with status 2.
"""

import atexit
import copy
import functools
import importlib
import os
import subprocess
import sys
import weakref

import numpy as np

from whale_jax.base.errors import WhaleError, unknown_name

_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().any(), "the rendered frame is black"
"""

_INSTALL = (
    "Install a software renderer with `sudo apt-get install -y libosmesa6`, or, for a GPU, "
    "`sudo apt-get install -y libegl1`, and run the same command again."
)


@functools.cache
def _probe(name: str, before: str = "") -> str | None:
    """Returns None if MuJoCo renders a frame with MUJOCO_GL=name in its own process, and otherwise the reason.

    `before` is what that process runs first.
    """
    env = {**os.environ, "MUJOCO_GL": name}
    env.pop("PYOPENGL_PLATFORM", None)
    command = [sys.executable, "-c", before + _PROBE]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "no frame within 120 s"
    if done.returncode == 0:
        return None
    reason = [line for line in done.stderr.splitlines() if line and not line.startswith((" ", "Exception ignored"))]
    errors = [line for line in reason if "Error" in line]
    return (errors or reason or [f"the process ended with status {done.returncode}"])[0]


@functools.cache
def find_gl() -> str:
    """Returns the value for MUJOCO_GL that renders off screen on this machine.

    A value that is already set is kept if it works. Otherwise "egl" and then "osmesa" are tried, each in its own
    process.

    Raises:
      WhaleError: none works, or MuJoCo itself is missing. The message says what to install.
    """
    failed = {}
    given = os.environ.get("MUJOCO_GL", "").strip().lower()
    for name in dict.fromkeys(filter(None, (given, "egl", "osmesa"))):
        reason = _probe(name)
        if reason is None:
            return name
        if "No module named 'mujoco'" in reason:
            raise WhaleError("MuJoCo is not installed; run `pip install 'whale-jax[metaworld]'`.")
        failed[name] = reason
    tried = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
    raise WhaleError(f"No off-screen GL works on this machine ({tried}). {_INSTALL}")


def use_gl() -> str:
    """Sets MUJOCO_GL to the result of `find_gl`, before MuJoCo renders anything, and returns it."""
    name = os.environ["MUJOCO_GL"] = find_gl()
    # MuJoCo refuses another value, which shells keep from old advice.
    if os.environ.get("PYOPENGL_PLATFORM", name) != name:
        os.environ["PYOPENGL_PLATFORM"] = name
    return name


def _gl_context(side: int):
    """Returns a current GL context of `side` x `side` pixels, even if MuJoCo was imported before `use_gl`."""
    name = use_gl()
    if "tensorflow" in sys.modules and _probe(name, "import tensorflow"):
        raise WhaleError(
            f"TensorFlow is loaded in this process, and MuJoCo's renderer ({name}) crashes beside it; render in a "
            "process without it."
        )
    try:
        context = importlib.import_module(f"mujoco.{name}").GLContext(side, side)
        context.make_current()
    except Exception as error:
        raise WhaleError(
            f"GL {name!r} works in a process of its own but not in this one ({error}): something loaded "
            f"another GL first. Set MUJOCO_GL={name} and unset PYOPENGL_PLATFORM before starting."
        ) from error
    return context


def area_reduce(image: np.ndarray, factor: int) -> np.ndarray:
    """Reduces (H*f, W*f, 3) uint8 to (H, W, 3) uint8, the rounded mean of each f x f square."""
    h, w = image.shape[0] // factor, image.shape[1] // factor
    # Adding planes is 14 times faster than one reduction over two axes.
    rows = image.reshape(h, factor, w * factor * 3)
    total = rows[:, 0].astype(np.uint16)
    for i in range(1, factor):
        total += rows[:, i]
    columns = total.reshape(h, w, factor, 3)
    total = columns[:, :, 0].copy()
    for i in range(1, factor):
        total += columns[:, :, i]
    return ((total + factor * factor // 2) // (factor * factor)).astype(np.uint8)


def simplify_meshes(model, cell: float):
    """Returns a copy of `model`, for drawing only, whose mesh vertices are merged on a grid of `cell` metres.

    A software renderer spends its time on vertices, and most of a robot's triangles are smaller than a pixel. Faces
    that collapse are dropped. The others keep their normals.
    """
    model = copy.copy(model)
    for i in range(model.nmesh):
        first, count = model.mesh_faceadr[i], model.mesh_facenum[i]
        vertices = model.mesh_vert[model.mesh_vertadr[i] :][: model.mesh_vertnum[i]]
        faces = model.mesh_face[first : first + count]
        grid = np.floor((vertices - vertices.min(0)) / cell).astype(np.int64)
        _, group = np.unique(grid @ np.array([1 << 40, 1 << 20, 1]), return_inverse=True)
        merged = group[faces]
        a, b, c = merged.T
        alive = np.flatnonzero((a != b) & (b != c) & (a != c))
        _, once = np.unique(np.sort(merged[alive], axis=1), axis=0, return_index=True)
        kept = alive[np.sort(once)]
        size = np.bincount(group)
        centres = np.stack([np.bincount(group, vertices[:, k]) / size for k in range(3)], axis=1)
        vertices[:] = centres[group]
        for array in (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord):
            array[first : first + len(kept)] = array[first : first + count][kept]
        model.mesh_facenum[i] = len(kept)
    return model


class FrameRenderer:
    """Draws square frames of a MuJoCo model from one of its cameras. The physics stays untouched.

    It renders once at `oversample` times the size, without shadows, reflections or multisampling, and reduces the
    picture by area. It turns the picture of a camera that hangs upside down (Meta-World v3's corner cameras) by 180
    degrees.

    Raises:
      WhaleError: the camera is unknown, or no GL works.
    """

    def __init__(self, model, camera: str, image_size: int, oversample: int | None = None):
        import mujoco

        names = [model.camera(i).name for i in range(model.ncam)]
        if camera not in names:
            raise unknown_name("camera", camera, names)
        self._mujoco, self._model, self._camera_id = mujoco, model, names.index(camera)
        self._factor = oversample or (4 if image_size <= 64 else 2)
        side = image_size * self._factor
        # A pixel covers about 1.3 m / image_size of the scene. Vertices within a fifth of that are merged.
        drawn = simplify_meshes(model, cell=0.256 / image_size)
        drawn.vis.quality.offsamples = 0
        drawn.vis.quality.shadowsize = 0
        drawn.vis.global_.offwidth = drawn.vis.global_.offheight = side
        self._gl = _gl_context(side)
        self._context = mujoco.MjrContext(drawn, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._options = mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._view.fixedcamid = self._camera_id
        self._rect = mujoco.MjrRect(0, 0, side, side)
        self._pixels = np.empty((side, side, 3), np.uint8)
        # The context must be freed before the process ends its GL. The weak reference lets it go earlier.
        reference = weakref.ref(self)
        atexit.register(lambda: reference() and reference().close())

    def render(self, data) -> np.ndarray:
        """Returns the upright frame (S, S, 3) uint8 of this state."""
        mujoco = self._mujoco
        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._view, everything, self._scene)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._context)
        frame = area_reduce(self._pixels, self._factor)
        # GL counts rows from the bottom, so an upright camera needs its rows reversed, and one whose up axis
        # points down needs its columns reversed instead: a turn, which unlike a flip keeps left and right.
        upside_down = data.cam_xmat[self._camera_id][7] < -0.1
        return np.ascontiguousarray(frame[:, ::-1] if upside_down else frame[::-1])

    def close(self) -> None:
        """Frees the GL context. The renderer cannot be used afterwards."""
        if self._gl is not None:
            # GL frees these numbers in the current context, even if they belong to another one.
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def __del__(self):
        if getattr(self, "_gl", None) is not None:
            self.close()


def main() -> int:
    """Prints the name of a GL that works, or a sentence that says what to do. Returns the exit status."""
    try:
        print(find_gl())
    except WhaleError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
