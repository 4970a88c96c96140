#!/bin/bash
# up.sh: etcd, kube-apiserver, kube-controller-manager, kube-scheduler in the namespace $LAB-cp; containerd + kubelet for $NODES nodes,
# each in namespaces of its own. All addresses are inside network namespaces made here. Ended by down.sh.
#   NODES=2        number of nodes        CNI=bridge     bridge: the standard plugins; none: nodes wait for your configuration
#   MODE=cri       no Kubernetes at all: only the nodes' containerd (drive it with bin/cri inside nodex); podCIDRs 10.244.N.0/24
#   CNI_DIR=DIR    folder with more plugin binaries, copied into each node's plugin folder (wrapped so that calls are logged)
#   FAMILIES=2     nodes, pods and Services have IPv6 addresses, too
#   IMAGES=FILE... archives of further images for the nodes
set -e
. "$(dirname "$0")/lib.sh"
CNI=${CNI:-bridge}; MODE=${MODE:-kube}
[ -e "$R/up" ] && { echo "already up (down.sh first)"; exit 1; }
[ -x "$PREFIX/bin/kubelet" ] || { echo "run tests/lab/setup first"; exit 1; }
mkdir -p "$R"; : > "$R/up"; T0=$(now)
VER=$(cat "$PREFIX/version")
if [ "$VER" = 1.20.2 ]; then           # flags and fields that only this version knows or needs
  G=EndpointSliceTerminatingCondition=true,EndpointSliceNodeName=true
  API_V="--storage-media-type=application/json --feature-gates=$G"; KCM_V="--feature-gates=$G --pod-eviction-timeout=30s"
  KUBELET_V="--container-runtime remote --container-runtime-endpoint unix:///run/containerd/containerd.sock"; KUBELET_Y=
else
  API_V=; KCM_V=; KUBELET_V=; KUBELET_Y='containerRuntimeEndpoint: "unix:///run/containerd/containerd.sock"
failCgroupV1: false'
fi

# two families: an alpha feature of 1.20
if [ "$FAMILIES" = 2 ]; then
  PODS=$PODS,$PODS6; SERVICES_ALL=$SERVICES,$SERVICES6; MASK="--node-cidr-mask-size-ipv4=24 --node-cidr-mask-size-ipv6=64"
  [ "$VER" = 1.20.2 ] && { G=$G,IPv6DualStack=true; API_V="--storage-media-type=application/json --feature-gates=$G"
    KCM_V="--feature-gates=$G --pod-eviction-timeout=30s"; KUBELET_V="$KUBELET_V --feature-gates=IPv6DualStack=true"; }
else SERVICES_ALL=$SERVICES; MASK=--node-cidr-mask-size=24; fi

# --- certificates, tokens, kubeconfigs
C=$R/certs; mkdir -p "$C"; cd "$C"
API=https://$UNDERLAY.1:6443
{ openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=lab-ca -keyout ca.key -out ca.crt
  openssl req -newkey rsa:2048 -nodes -subj /CN=kube-apiserver -keyout api.key -out api.csr
  printf 'subjectAltName=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:%s.1,IP:%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$UNDERLAY" "${SERVICES%.0/*}.1" > ext
  openssl x509 -req -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out api.crt
  openssl req -newkey rsa:2048 -nodes -subj /O=system:masters/CN=kube-apiserver-kubelet-client -keyout kc.key -out kc.csr
  printf 'extendedKeyUsage=clientAuth\n' > kext
  openssl x509 -req -in kc.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile kext -out kc.crt
  openssl genrsa -out sa.key 2048; openssl rsa -in sa.key -pubout -out sa.pub; } >openssl.log 2>&1
: > tokens.csv
user() { # user FILE NAME GROUPS: a token and a kubeconfig
  local t; t=$(openssl rand -hex 16); echo "$t,$2,$2,\"$3\"" >> tokens.csv
  cat > "$1" <<Y
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "$API", certificate-authority: "$C/ca.crt"}}]
users: [{name: u, user: {token: "$t"}}]
contexts: [{name: lab, context: {cluster: lab, user: u}}]
current-context: lab
Y
}
user "$R/admin.kubeconfig" admin system:masters
user "$R/kcm.kubeconfig" system:kube-controller-manager system:masters
user "$R/sched.kubeconfig" system:kube-scheduler ""
for n in $(seq "$NODES"); do mkdir -p "$R/n$n"; user "$R/n$n/kubeconfig" "system:node:n$n" system:nodes; done

# --- underlay: a bridge in the control plane's namespace, a veth to each node
ip netns add "$CP"; ip -n "$CP" link set lo up
ip -n "$CP" link add ul0 type bridge; ip -n "$CP" addr add "$UNDERLAY.1/24" dev ul0; ip -n "$CP" link set ul0 up
[ "$FAMILIES" = 2 ] && ip -n "$CP" addr add "$UNDERLAY6::1/64" dev ul0 nodad
for n in $(seq "$NODES"); do
  ip netns add "$LAB-n$n"; ip -n "$LAB-n$n" link set lo up
  ip -n "$CP" link add "ul$n" type veth peer name eth0 netns "$LAB-n$n"
  ip -n "$CP" link set "ul$n" master ul0 up
  ip -n "$LAB-n$n" addr add "$UNDERLAY.1$n/24" dev eth0; ip -n "$LAB-n$n" link set eth0 up
  ip -n "$LAB-n$n" route add default via "$UNDERLAY.1"
  [ "$FAMILIES" = 2 ] && { ip -n "$LAB-n$n" addr add "$UNDERLAY6::1$n/64" dev eth0 nodad; ip -n "$LAB-n$n" route add default via "$UNDERLAY6::1"; }
  ip netns exec "$LAB-n$n" sysctl -qw net.ipv4.ip_forward=1
done

# --- control plane
if [ "$MODE" = kube ]; then
B=$PREFIX/bin; E=$PREFIX/root/usr/bin/etcd
bg etcd "$E" --name lab --data-dir "$R/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster lab=http://127.0.0.1:2380 \
  --unsafe-no-fsync
T1=$(now)
bg apiserver "$B/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --advertise-address="$UNDERLAY.1" --secure-port=6443 \
  --tls-cert-file=api.crt --tls-private-key-file=api.key --client-ca-file=ca.crt --token-auth-file=tokens.csv --authorization-mode=Node,RBAC \
  --service-cluster-ip-range="$SERVICES_ALL" --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=sa.pub \
  --service-account-signing-key-file=sa.key --kubelet-client-certificate=kc.crt --kubelet-client-key=kc.key --kubelet-preferred-address-types=InternalIP --allow-privileged=true \
  $API_V ${API_EXTRA:-}
for i in $(seq 600); do [ "$(kc get --raw /readyz 2>/dev/null)" = ok ] && break; sleep 0.1; done
echo "API server ready after $(since "$T1")"
bg kcm "$B/kube-controller-manager" --kubeconfig="$R/kcm.kubeconfig" --leader-elect=false --allocate-node-cidrs=true --cluster-cidr="$PODS" $MASK \
  --service-cluster-ip-range="$SERVICES_ALL" --service-account-private-key-file=sa.key --root-ca-file=ca.crt \
  --node-monitor-grace-period=20s $KCM_V ${KCM_EXTRA:-}
bg sched "$B/kube-scheduler" --kubeconfig="$R/sched.kubeconfig" --leader-elect=false
fi

# --- nodes
T2=$(now)
for n in $(seq "$NODES"); do
  S=$R/n$n; mkdir -p "$S/cni/net.d" "$S/bin" "$S/cni/bin" "$S/cni/real"
  cp "$PREFIX"/root/usr/lib/cni/* "$S/cni/real/"; [ -n "${CNI_DIR:-}" ] && cp "$CNI_DIR"/* "$S/cni/real/"
  for p in "$S"/cni/real/*; do     # each plugin behind a wrapper that logs the call, its input and its answer
    cat > "$S/cni/bin/$(basename "$p")" <<W
#!/bin/bash
in=\$(cat); out=\$(printf '%s' "\$in" | "$p"); rc=\$?
printf '%s %s rc=%d id=%.12s netns=%s if=%s args=%s\n  in  %s\n  out %s\n' "\$CNI_COMMAND" "$(basename "$p")" \$rc "\$CNI_CONTAINERID" "\$CNI_NETNS" "\$CNI_IFNAME" "\$CNI_ARGS" "\$(printf '%s' "\$in" | tr -d '\n')" "\$(printf '%s' "\$out" | tr -d '\n\t')" >> "$S/cni.log"
printf '%s' "\$out"; exit \$rc
W
    chmod +x "$S/cni/bin/$(basename "$p")"
  done
  cat > "$S/containerd.toml" <<Y
version = 2
root = "$S/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "lab.local/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$S/cni/bin"
    conf_dir = "$S/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "${SNAPSHOTTER:-overlayfs}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
Y
  cat > "$S/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: "$C/ca.crt"}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupsPerQOS: ${CGROUPS_PER_QOS:-true}
enforceNodeAllocatable: [${ENFORCE:-}]
failSwapOn: false
makeIPTablesUtilChains: false
clusterDNS: ["${SERVICES%.0/*}.10"]
clusterDomain: cluster.local
oomScoreAdj: 0
protectKernelDefaults: true
readOnlyPort: 0
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "50Mi", nodefs.available: "100Mi", imagefs.available: "100Mi", nodefs.inodesFree: "1%"}
nodeStatusUpdateFrequency: 3s
syncFrequency: 10s
resolvConf: "$S/resolv.conf"
$KUBELET_Y
Y
  echo "nameserver 127.0.0.1" > "$S/resolv.conf"
  for c in $CGROUPS; do
    g=$(awk -v c="$c" '$3=="cgroup" && $2 ~ "/"c"$" {print $2; exit}' /proc/mounts); [ -n "$g" ] || continue
    mkdir -p "$g/$LAB-n$n"
    [ "$c" = cpuset ] && { cat "$g/cpuset.cpus" > "$g/$LAB-n$n/cpuset.cpus"; cat "$g/cpuset.mems" > "$g/$LAB-n$n/cpuset.mems"; }
    echo "$g/$LAB-n$n" >> "$R/cgroups"
  done
  # starts the node (again): joins the cgroups, then enters the network namespace, then the others;
  # --kill-child: when the recorded process ends, all of the node's end
  cat > "$S/start.sh" <<W
export S="$S" PREFIX="$PREFIX" NODE=n$n NODE_IP=$UNDERLAY.1$n$([ "$FAMILIES" = 2 ] && echo ",$UNDERLAY6::1$n") CGROUPS="$CGROUPS" MODE=$MODE IMAGES="${IMAGES:-}" KUBELET_EXTRA="$KUBELET_V ${KUBELET_EXTRA:-}"
for g in \$(grep '/$LAB-n$n\$' "$R/cgroups"); do echo \$\$ > \$g/cgroup.procs; done
exec ip netns exec "$LAB-n$n" unshare -m -u -i -p -C -f --kill-child bash "$HERE/files/node.sh"
W
  startnode "$n"
done
for n in $(seq "$NODES"); do
  [ "$MODE" = kube ] || { echo "10.244.$n.0/24" > "$R/n$n/podcidr"; continue; }
  for i in $(seq 600); do cidr=$(kc get node "n$n" -o jsonpath='{.spec.podCIDR}' 2>/dev/null) || true; [ -n "$cidr" ] && break; sleep 0.1; done
  echo "n$n registered, podCIDR $cidr, after $(since "$T2")"; echo "$cidr" > "$R/n$n/podcidr"
done
if [ "$CNI" = bridge ]; then
  for n in $(seq "$NODES"); do
    cidr=$(cat "$R/n$n/podcidr"); S=$R/n$n
    cat > "$S/cni/net.d/10-lab.conflist" <<Y
{"cniVersion": "0.4.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$cidr"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
Y
    for m in $(seq "$NODES"); do [ "$m" = "$n" ] || ip -n "$LAB-n$n" route add "$(cat "$R/n$m/podcidr")" via "$UNDERLAY.1$m"; done
    ip -n "$CP" route add "$cidr" via "$UNDERLAY.1$n"
  done
  if [ "$MODE" = kube ]; then kc wait --for=condition=Ready node --all --timeout=90s; else
    for n in $(seq "$NODES"); do for i in $(seq 200); do nodex "$n" "$PREFIX/bin/cri" /run/containerd/containerd.sock version 2>/dev/null | grep -q "NetworkReady true" && break; sleep 0.1; done; done; fi
fi
echo "up after $(since "$T0"); kubectl: ip netns exec $CP $PREFIX/root/usr/bin/kubectl --kubeconfig $R/admin.kubeconfig ..."
