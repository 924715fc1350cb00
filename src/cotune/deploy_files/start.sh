#!/bin/sh
# Starts @{party} and keeps it running. Stop it with Ctrl-C, or: kill the process id it runs under.
set -eu
cd "$(dirname "$0")"
exec "${PYTHON:-python3}" -m cotune.deployed start .
