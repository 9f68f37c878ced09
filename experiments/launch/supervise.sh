#!/usr/bin/env bash
# Runs a command, passes SIGTERM on to it, and then ends with 143 however well the command ended:
# a run that was stopped saves and ends with 0, and Kubernetes would take it for finished.
stopped=
trap 'stopped=1; kill -TERM "$child"' TERM
"$@" &
child=$!
wait "$child"
code=$?
while kill -0 "$child" 2> /dev/null; do # a signal ends `wait` before the command
  wait "$child"
  code=$?
done
[[ -z $stopped ]] || exit 143
exit "$code"
