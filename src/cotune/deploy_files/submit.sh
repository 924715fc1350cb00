#!/bin/sh
# Registers the clients' nodes and asks the running server for the run. Repeat it to go on after a stop.
set -eu
cd "$(dirname "$0")"
exec "${PYTHON:-python3}" -m cotune.deployed submit .
