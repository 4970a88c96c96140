#!/bin/bash
# node.sh: one node. Runs as process 1 of its own PID, mount, UTS, IPC and cgroup namespaces, in its own network namespace.
# Given by up.sh: PREFIX (unpacked programs), S (this node's state folder), NODE, NODE_IP, CGDIR (name of its cgroup directories).
# System mount points (/run, /var, /sys/fs/cgroup, three files of /proc/sys) are covered inside this mount namespace only.
set -e
exec >>"$S/node.log" 2>&1
hostname "$NODE"
mount --make-rprivate /
mount -t proc proc /proc
# private /run; private /var by overlay (kubelet, CNI caches and pod logs go to $S/var); containerd's own store lies in $S (no overlay on overlay)
mount -t tmpfs -o mode=755 run /run; mkdir -p /run/netns /run/lock
mkdir -p "$S/var" "$S/var.work"
mount -t overlay -o "lowerdir=/var,upperdir=$S/var,workdir=$S/var.work" var /var
# the same path on every node, as a DaemonSet needs it
mkdir -p /run/lab-cni "$S/cni"; mount --bind "$S/cni" /run/lab-cni
# cgroup v1 hierarchies, seen from this node's cgroup namespace
mount -t tmpfs -o mode=755 cg /sys/fs/cgroup
for c in $CGROUPS; do
  mkdir -p "/sys/fs/cgroup/$c"; o=$c; [ "$c" = systemd ] && o=none,name=systemd
  mount -t cgroup -o "$o" "$c" "/sys/fs/cgroup/$c" || { rmdir "/sys/fs/cgroup/$c"; echo "no cgroup $c"; }
done
# the kubelet requires three kernel settings: files with the required values cover them, and the machine's settings stay unchanged
mkdir -p "$S/sysctl"
for kv in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
  f=$S/sysctl/${kv%%=*}; mkdir -p "$(dirname "$f")"; echo "${kv##*=}" > "$f"; mount --bind "$f" "/proc/sys/${kv%%=*}"
done
mount --make-rshared /
export PATH="$S/bin:$PREFIX/root/usr/sbin:$PREFIX/root/usr/bin:$PREFIX/bin:$PATH"
export LD_LIBRARY_PATH="$PREFIX/root/usr/lib/x86_64-linux-gnu"
containerd --config "$S/containerd.toml" >"$S/containerd.log" 2>&1 & CP=$!
for i in $(seq 100); do ctr -a /run/containerd/containerd.sock version >/dev/null 2>&1 && break; sleep 0.1; done
ctr -a /run/containerd/containerd.sock -n k8s.io images import "$PREFIX/images.tar" || true
for i in $IMAGES; do ctr -a /run/containerd/containerd.sock -n k8s.io images import "$i"; done
if [ "$MODE" = cri ]; then wait $CP; echo "containerd ended: $?"; sleep 1000000; fi
env -u LD_LIBRARY_PATH kubelet --config "$S/kubelet.yaml" --kubeconfig "$S/kubeconfig" --hostname-override "$NODE" --node-ip "$NODE_IP" \
  --root-dir /var/lib/kubelet --v 2 $KUBELET_EXTRA >"$S/kubelet.log" 2>&1 & KP=$!
echo "containerd $CP kubelet $KP (pids inside)"
wait -n $CP $KP; echo "ended: $?"; tail -3 "$S/kubelet.log"
sleep 1000000 & wait
