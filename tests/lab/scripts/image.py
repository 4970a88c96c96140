#!/usr/bin/env python3
"""image.py BIN OUT.tar: the image of the Containerfile as an OCI archive, lab.local/podswitch:test, without a builder:
/vswitch, /podswitch-cni, and /ingress if BIN has it; nothing else. Import with `ctr -n k8s.io images import OUT.tar`."""
import hashlib, io, json, os, sys, tarfile
folder, out = sys.argv[1:3]


def layer():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as archive:
        more = [name for name in ["ingress"] if os.path.exists(os.path.join(folder, name))]
        for name in ["vswitch", "podswitch-cni", *more]:
            info = archive.gettarinfo(os.path.join(folder, name), name)
            info.mode, info.uid, info.gid, info.uname, info.gname, info.mtime = 0o755, 0, 0, "", "", 0
            with open(os.path.join(folder, name), "rb") as file:
                archive.addfile(info, file)
    return data.getvalue()


blobs = {}


def blob(data):
    if isinstance(data, dict):
        data = json.dumps(data).encode()
    digest = hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    return {"digest": "sha256:" + digest, "size": len(data)}


content = blob(layer())
config = blob({"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/vswitch"]},
               "rootfs": {"type": "layers", "diff_ids": [content["digest"]]}, "history": [{"created_by": "image.py"}]})
manifest = blob({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                 "config": dict(config, mediaType="application/vnd.oci.image.config.v1+json"),
                 "layers": [dict(content, mediaType="application/vnd.oci.image.layer.v1.tar")]})
index = dict(manifest, mediaType="application/vnd.oci.image.manifest.v1+json", platform={"architecture": "amd64", "os": "linux"},
             annotations={"io.containerd.image.name": "lab.local/podswitch:test", "org.opencontainers.image.ref.name": "test"})
with tarfile.open(out, "w") as archive:
    def put(name, data):
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        archive.addfile(info, io.BytesIO(data))
    put("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    put("index.json", json.dumps({"schemaVersion": 2, "manifests": [index]}).encode())
    for digest, data in blobs.items():
        put("blobs/sha256/" + digest, data)
