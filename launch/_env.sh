# Sourced by the launch scripts: sets up the environment if necessary, and defines $root and the GL.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/launch/setup.sh"

gl=$(sed -n 's/^gl //p' "$root/.venv/whale-setup")
if [ "$gl" != none ]; then
    export MUJOCO_GL=${MUJOCO_GL:-$gl}
fi
