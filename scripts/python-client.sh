#!/usr/bin/env bash
# Puts a Python with the client of clients/python, and what its tests need, into target/tools/python.
set -euo pipefail
cd "$(dirname "$0")/.."
python=target/tools/python
[ "$python/installed" -nt clients/python/pyproject.toml ] && exit 0
python3 -m venv "$python"
"$python/bin/python" -m pip install --quiet --editable 'clients/python[test]'
touch "$python/installed"
