#!/usr/bin/env bash
# Run two processes of examples/multi_host.py on this machine as on two hosts:
# each in a network namespace of its own, with a virtual cable between them.
#
#     sudo PYTHON=.venv/bin/python examples/containers/two_namespaces.sh jax
#
# The backend, jax or torch, may be followed by options of multi_host.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
backend=${1:?"Name a backend: jax or torch."}
shift

finish() {
  for host in 0 1; do
    ip netns delete "tlgc$host" 2> /dev/null || true
    rm -rf "/etc/netns/tlgc$host"
  done
}
trap finish EXIT
for host in 0 1; do
  ip netns add "tlgc$host"
  ip -n "tlgc$host" link set lo up
  # JAX's processes tell each other the addresses that their names have.
  mkdir -p "/etc/netns/tlgc$host"
  echo "10.87.0.$((host + 1)) $(hostname)" > "/etc/netns/tlgc$host/hosts"
done
ip link add cable0 netns tlgc0 type veth peer name cable1 netns tlgc1
for host in 0 1; do
  ip -n "tlgc$host" address add "10.87.0.$((host + 1))/24" dev "cable$host"
  ip -n "tlgc$host" link set "cable$host" up
done

process() {
  ip netns exec "tlgc$1" env KERAS_BACKEND="$backend" \
    JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" GLOO_SOCKET_IFNAME="cable$1" \
    "${PYTHON:-python}" examples/multi_host.py --coordinator 10.87.0.1:9876 \
    --processes 2 --process-id "$@"
}
process 1 "$@" &
process 0 "$@"
wait "$!"
