# Sourced by up.sh, down.sh, start-control-plane. The programs are under $PREFIX (made by ../setup), state, logs and pids under $RUN.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PREFIX=${PREFIX:?the folder that tests/lab/setup made}
LAB=${LAB:-k8slab}                       # prefix of the names of network namespaces and cgroups
NODES=${NODES:-2}
UNDERLAY=${UNDERLAY:-172.30.0}           # /24 between the control plane (.1) and the nodes (.11, .12, ...)
PODS=${PODS:-10.244.0.0/16}; SERVICES=${SERVICES:-10.96.0.0/16}
FAMILIES=${FAMILIES:-1}                  # 2: IPv6, too
UNDERLAY6=${UNDERLAY6:-fd28:0:0:1}; PODS6=${PODS6:-fd00:244::/56}; SERVICES6=${SERVICES6:-fd00:96::/112}
R=${RUN:-$PREFIX/run}                    # state, logs and pids of a running lab
CP=$LAB-cp
CGROUPS="cpu cpuacct cpuset memory devices freezer blkio pids systemd"
export LD_LIBRARY_PATH=
cpx() { ip netns exec "$CP" "$@"; }
kc() { cpx "$PREFIX/root/usr/bin/kubectl" --kubeconfig "$R/admin.kubeconfig" "$@"; }
# nodex N CMD...: run in node N's namespaces (its process 1 is recorded in $R/nN/pid1)
nodex() { local n=$1; shift; nsenter -t "$(cat "$R/n$n/pid1")" -m -u -i -n -p -C -- "$@"; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN{printf "%.1f s", b-a}'; }
keep() { echo "$2" > "$R/$1.pid"; }      # every process started is recorded by pid
# bg NAME CMD...: in the control plane's namespace, in the background (ip execs the program, so the pid is the program's own)
bg() { local n=$1; shift; printf '%q ' "$@" > "$R/$n.cmd"; ip netns exec "$CP" "$@" </dev/null >>"$R/$n.log" 2>&1 & keep "$n" $!; }
startnode() { # startnode N: starts node N and waits for its process 1
  bash "$R/n$1/start.sh" </dev/null >>"$R/n$1/outer.log" 2>&1 & keep "n$1" $!
  local i p; for i in $(seq 100); do p=$(pgrep -P "$(cat "$R/n$1.pid")" | head -1); [ -n "$p" ] && break; sleep 0.1; done
  echo "$p" > "$R/n$1/pid1"
}
# for tests: kill9 NAME, restart NAME with NAME = etcd, apiserver, kcm, sched, n1, n2 ... (a node loses all its pods' processes, as in a power cut)
kill9() { case $1 in n[0-9]*) kill -KILL "$(cat "$R/$1/pid1")" ;; *) kill -KILL "$(cat "$R/$1.pid")" ;; esac; }
restart() { case $1 in n[0-9]*) startnode "${1#n}" ;; *) ( cd "$R/certs"; eval "bg $1 $(cat "$R/$1.cmd")" ) ;; esac; }
