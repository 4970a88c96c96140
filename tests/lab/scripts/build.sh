#!/bin/bash
# build.sh: builds everything that up.sh needs into $PREFIX from Debian's packages. Installs nothing on the machine itself.
# Idempotent: each finished step leaves a mark in $PREFIX/done. Needs: apt-get, python3, openssl, ip, nsenter, unshare, curl, tar.
# Debian bookworm packages only: kubernetes' source package (complete, with its vendored libraries), Go 1.19, containerd 1.6. Takes 15 to 30 minutes;
# an archive of what it made (LAB_ARCHIVE of ../setup) is unpacked in seconds and does the same.
set -e
HERE=$(cd "$(dirname "$0")" && pwd); PREFIX=${PREFIX:?a folder}
NICE="nice -n ${NICE:-5}"
mkdir -p "$PREFIX"/{done,bin,root,debs,apt/lists/partial,apt/state,apt/none,apt/cache/archives/partial}
say() { echo "[$(date +%T)] $*"; }
did() { [ -e "$PREFIX/done/$1" ]; }
mark() { say "$1: $(( $(date +%s) - T )) s"; touch "$PREFIX/done/$1"; }

# --- a private apt configuration: the mirror that this machine's own configuration names, bookworm with sources
T=$(date +%s)
if ! did apt; then
  uri=$(apt-get indextargets --format '$(REPO_URI)|$(COMPONENT)|$(CODENAME)' 'Created-By: Packages' | awk -F'|' '$2=="main" && $3 ~ /^[a-z]+$/ {print $1; exit}')
  [ -n "$uri" ] || { echo "no Debian mirror configured"; exit 1; }
  key=$(dpkg -L debian-archive-keyring | grep '/debian-archive-keyring.gpg$')
  for s in bookworm; do printf 'Types: deb deb-src\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n' "$uri" "$s" "$key"; done > "$PREFIX/apt/own.sources"
  cat > "$PREFIX/apt/apt.conf" <<Y
Dir::Etc::sourcelist "$PREFIX/apt/own.sources";
Dir::Etc::sourceparts "$PREFIX/apt/none";
Dir::Etc::preferencesparts "$PREFIX/apt/none";
Dir::State "$PREFIX/apt/state";
Dir::State::lists "$PREFIX/apt/lists";
Dir::Cache "$PREFIX/apt/cache";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root";
Y
  apt-get -c "$PREFIX/apt/apt.conf" -qq update
  mark apt
fi
APT="apt-get -c $PREFIX/apt/apt.conf -qq"
fetch() { # fetch DEST SUITE PACKAGE...: download and unpack, nothing is installed
  local dest=$1 suite=$2; shift 2; mkdir -p "$dest"
  for p in "$@"; do ( cd "$PREFIX/debs"; rm -f "${p}"_*.deb; $APT download "$p/$suite" >/dev/null; dpkg -x "${p}"_*.deb "$dest" ); done
}
T=$(date +%s)
did debs || {
  fetch "$PREFIX/root" bookworm busybox-static runc libseccomp2
  fetch "$PREFIX/root" bookworm containerd containernetworking-plugins etcd-server etcd-client kubernetes-client
  fetch "$PREFIX/go" bookworm golang-1.19-go golang-1.19-src
  fetch "$PREFIX/reflect2" bookworm golang-github-modern-go-reflect2-dev
  ( cd "$PREFIX/debs" && $APT source --download-only kubernetes/bookworm )
  mark debs
}
T=$(date +%s)
did image || { python3 "$HERE/files/mkimage.py" "$PREFIX/root/bin/busybox" "$PREFIX/images.tar"; mark image; }

export CGO_ENABLED=0 GOCACHE=$PREFIX/gocache GOPATH=$PREFIX/gopath GOTOOLCHAIN=local GOPROXY=off
export GOROOT=$PREFIX/go/usr/lib/go-1.19 GO111MODULE=off; PATH=$GOROOT/bin:$PATH
K=$GOPATH/src/k8s.io/kubernetes; T=$(date +%s)
did source || {
  rm -rf "$K"; mkdir -p "$GOPATH/src/k8s.io"
  tar xzf "$PREFIX"/debs/kubernetes_*.orig.tar.gz -C "$GOPATH/src/k8s.io"; mv "$GOPATH"/src/k8s.io/kubernetes-1.20* "$K"
  # the vendored reflect2 crashes with Go 1.18 and later: Debian's 1.0.2 in its place
  rm -rf "$K/vendor/github.com/modern-go/reflect2"; cp -r "$PREFIX/reflect2/usr/share/gocode/src/github.com/modern-go/reflect2" "$K/vendor/github.com/modern-go/reflect2"
  rm -f "$K"/vendor/github.com/modern-go/reflect2/*_test.go
  python3 "$HERE/files/patch.py" "$K"
  mark source
}
T=$(date +%s)
did openapi || (
  cd "$K"; $NICE go build -o "$PREFIX/bin/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  D=$(grep -rlE '\+k8s:openapi-gen=' --include=*.go staging/src/k8s.io/{api,apiextensions-apiserver/pkg/apis,apimachinery/pkg/{api,apis/meta,runtime,util,version},kube-aggregator/pkg/apis,apiserver/pkg/apis/audit} |
    xargs -n1 dirname | sort -u | sed 's#^staging/src#k8s.io/kubernetes/vendor#' | paste -sd,)
  echo '// generated' > "$PREFIX/head.txt"
  $NICE "$PREFIX/bin/openapi-gen" --go-header-file "$PREFIX/head.txt" -i "$D" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi -r "$PREFIX/openapi.report"
  mark openapi )
V="k8s.io/kubernetes/vendor/k8s.io/component-base/version k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version"; VER=1.20.2
mkdir -p "$K/cmd/lab"; cp "$HERE/files/lab120.go" "$K/cmd/lab/main.go"; BUILD=$K
mkdir -p "$K/cmd/cri"; cp "$HERE/files/cri.go" "$K/cmd/cri/main.go"
T=$(date +%s)
did build || (
  cd "$BUILD"; L="-s -w"
  for v in $V; do L="$L -X $v.gitVersion=v$VER-lab -X $v.gitMajor=1 -X $v.gitMinor=$(echo $VER | cut -d. -f2) -X $v.gitTreeState=clean -X $v.gitCommit=0 -X $v.buildDate=2026-01-01T00:00:00Z"; done
  # one binary for the four daemons, called by four names: one link instead of four
  $NICE go build -p "${JOBS:-2}" -ldflags "$L" -o "$PREFIX/bin/kubelet" ./cmd/lab
  for n in kube-apiserver kube-controller-manager kube-scheduler; do rm -f "$PREFIX/bin/$n"; ln -s kubelet "$PREFIX/bin/$n"; done
  $NICE go build -ldflags "-s -w" -o "$PREFIX/bin/cri" ./cmd/cri
  mark build )
echo "$VER" > "$PREFIX/version"
[ -n "$SLIM" ] && rm -rf "$PREFIX/gocache" "$PREFIX/gopath" "$PREFIX/go" "$PREFIX/debs" "$PREFIX/apt"
say "ready: kubernetes $VER in $PREFIX ($(du -sh "$PREFIX" | cut -f1))"
