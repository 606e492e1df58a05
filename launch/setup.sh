#!/usr/bin/env bash
# Creates .venv with the pinned dependencies and finds a GL for off-screen rendering. Returns at once if nothing has
# changed. Prints on stderr only, so that the output of a command stays clean.
#
#   bash launch/setup.sh            install what is missing
#   bash launch/setup.sh --check    only say "up to date" (status 0) or "stale" (status 1)
#
#   WHALE_EXTRAS=oxe,viz            parts to install; by default metaworld,viz,dev, and cuda if a GPU is found
#   WHALE_PYTHON=/path/to/python    the Python to use; by default the first suitable one on $PATH
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
stamp=$venv/whale-setup
log=$venv/setup.log
fits='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'

say() { printf 'set-up: %s\n' "$*" >&2; }
fail() { say "$@"; exit 2; }

# Prints everything that requires a new set-up when it changes. A new device file means that a GPU was added or removed.
inputs() {
    local version=none gpu=no
    [ -x "$venv/bin/python" ] && version=$(sed -n 's/^version[a-z_]* *= *//p' "$venv/pyvenv.cfg")
    [ -e /dev/nvidiactl ] || [ -e /dev/dxg ] && gpu=yes
    printf 'at %s\nextras %s\nasked %s\npython %s\ngpu %s\n' \
        "$root" "${WHALE_EXTRAS-auto}" "${WHALE_PYTHON-any}" "$version" "$gpu"
    (cd "$root" && cksum setup.py requirements.txt launch/setup.sh)
}

# The stamp holds the inputs and, as its last line, the GL that was found.
up_to_date() { [ -f "$stamp" ] && [ "$(sed '$d' "$stamp")" = "$(inputs)" ]; }

# phase TITLE COMMAND...: runs the command and prints its seconds on one line, or the end of its log if it fails.
phase() {
    local title=$1 start=$SECONDS
    shift
    printf 'set-up: %s ... ' "$title" >&2
    if "$@" >>"$log" 2>&1 </dev/null; then
        printf '%d s\n' $((SECONDS - start)) >&2
    else
        printf 'failed\n' >&2
        tail -n 15 "$log" | sed 's/^/  | /' >&2
        return 1
    fi
}

find_python() {
    local name names=(python3 python3.13 python3.12 python3.11)
    [ -n "${WHALE_PYTHON-}" ] && names=("$WHALE_PYTHON")
    for name in "${names[@]}"; do
        if "$name" -c "$fits" 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "none of ${names[*]} is Python 3.11, 3.12 or 3.13 with the venv module; install one" \
        "(Debian, Ubuntu: apt-get install python3 python3-venv; anywhere: uv python install 3.12)" \
        "or name it with WHALE_PYTHON=/path/to/python."
}

# Keeps a suitable .venv, including packages that were added by hand, and replaces an unsuitable one.
make_venv() {
    local python
    if [ -z "${WHALE_PYTHON-}" ] && "$venv/bin/python" -c "$fits" 2>/dev/null; then
        python=$venv/bin/python
    else
        python=$(find_python)
        if [ "$("$python" -V)" != "$("$venv/bin/python" -V 2>/dev/null)" ]; then
            rm -rf "$venv"
        fi
    fi
    mkdir -p "$venv"
    : >"$log"
    rm -f "$stamp"
    "$venv/bin/python" -m pip --version >>"$log" 2>&1 ||
        phase "$("$python" -V) in $venv" "$python" -m venv "$venv"
}

choose_extras() {
    if [ -n "${WHALE_EXTRAS+set}" ]; then
        echo "${WHALE_EXTRAS// /}"
    elif [[ $(nvidia-smi -L 2>/dev/null) == "GPU "* ]]; then
        echo metaworld,viz,dev,cuda
    else
        echo metaworld,viz,dev
    fi
}

install() {
    cd "$root" &&
        sed 's/^# cuda: //' requirements.txt >"$venv/constraints.txt" &&
        PIP_USER=0 "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
            -c "$venv/constraints.txt" -e ".${1:+[$1]}" || return
    # pip only warns about an extra that does not exist.
    if grep -q 'does not provide the extra' "$log"; then
        sed -n '/does not provide the extra/p' "$log" | tail -n 1
        return 1
    fi
}

ask_gl() { "$venv/bin/python" -m whale_jax.data.metaworld.rendering 2>>"$log" </dev/null; }

apt_install() {
    local as_root=(env DEBIAN_FRONTEND=noninteractive)
    [ "$(id -u)" = 0 ] || as_root=(sudo -n "${as_root[@]}")
    "${as_root[@]}" apt-get install -y --no-install-recommends "$@" || {
        "${as_root[@]}" apt-get update &&
            "${as_root[@]}" apt-get install -y --no-install-recommends "$@"
    }
}

may_apt_install() { command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; }

# Prints the GL that works. Status 2 of the probe means that none works; any other failure is a broken install.
find_gl() {
    local status=0
    ask_gl && return || status=$?
    if [ "$status" = 2 ] && may_apt_install &&
        phase "libosmesa6, because no GL renders off-screen here" apt_install libosmesa6; then
        ask_gl && return
    fi
    tail -n 1 "$log" >&2
    [ "$status" = 2 ] || fail "whale_jax.data.metaworld.rendering does not run in $venv; the whole message is in $log."
    fail "Meta-World needs a GL that renders off-screen (libosmesa6 on Debian and Ubuntu, mesa-libOSMesa on Fedora);" \
        "to go without Meta-World: export WHALE_EXTRAS=viz,dev"
}

main() {
    local extras key gl=none
    if [ "${1-}" = --check ]; then
        up_to_date && echo "up to date" && return
        echo "stale"
        return 1
    fi
    up_to_date && return

    if command -v flock >/dev/null; then
        exec 9<"${BASH_SOURCE[0]}"
        flock -n 9 || { say "waiting for another set-up of $root"; flock 9; }
        up_to_date && return
    fi

    make_venv
    key=$(inputs)
    extras=$(choose_extras)
    say "everything that is installed is logged in $log"
    phase "packages: core,$extras (the first time: a minute or two)" install "$extras"
    case ",$extras," in *,metaworld,*) gl=$(find_gl) ;; esac
    printf '%s\ngl %s\n' "$key" "$gl" >"$stamp.new"
    mv "$stamp.new" "$stamp"
    say "done in $SECONDS s; off-screen GL: $gl"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then main "$@"; fi
