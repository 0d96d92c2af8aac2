# Sourced by scripts/run and scripts/test: makes .venv from the locked dependencies, once, and again when they change.
#
# A stamp in .venv says what it was made from; without the right one the set-up is (re)done. A lock keeps a second
# set-up waiting. pip's own settings (index, find-links, proxy) are honoured.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
  printf 'set-up: %s\n' "$1" >&2
  exit 1
}

find_python() {
  local name
  for name in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
    if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  die "Python 3.11, 3.12 or 3.13 is needed and was not found; install one, or set PYTHON to its path"
}

explain_failure() {
  tail -n 15 .venv/setup.log >&2
  if grep -qiE "resolution|connect|network is unreachable|timed out|dns error|error sending request" .venv/setup.log; then
    die "the package index could not be reached: a network (or a local index: PIP_INDEX_URL, PIP_FIND_LINKS) is needed once; the whole log is .venv/setup.log"
  elif grep -qiE "gcc|g\+\+|cc1|compiler|Python\.h" .venv/setup.log; then
    die "a package had to be compiled: install a C compiler and Python's headers (Debian: gcc python3-dev); the whole log is .venv/setup.log"
  elif grep -qiE "no space left" .venv/setup.log; then
    die "the disk is full: about 3 GB are needed (more with CUDA); the whole log is .venv/setup.log"
  fi
  die "installing the dependencies failed; the whole log is .venv/setup.log"
}

ensure_environment() {
  local wanted python
  wanted=$(cat pyproject.toml scripts/constraints.txt | cksum)
  [ "$(cat .venv/stamp 2>/dev/null)" = "$wanted" ] && return
  exec 9<pyproject.toml
  flock 9
  [ "$(cat .venv/stamp 2>/dev/null)" = "$wanted" ] && return
  echo "setting up .venv (about 3 GB; once) ..." >&2
  if ! [ -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python) || exit 1
    rm -rf .venv
    "$python" -m venv .venv || die "\`$python -m venv\` failed (Debian: apt-get install python3-venv)"
  fi
  {
    .venv/bin/python -m pip install --disable-pip-version-check uv &&
      UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" .venv/bin/uv pip install --python .venv/bin/python \
        --compile-bytecode --constraints scripts/constraints.txt --editable '.[dev]'
  } >.venv/setup.log 2>&1 || explain_failure
  echo "$wanted" >.venv/stamp
  exec 9<&-
}

ensure_environment
