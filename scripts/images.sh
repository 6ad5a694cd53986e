#!/usr/bin/env bash
# The images, with docker or buildah: `images.sh [cpu|cuda]` as one would release them (they fetch their base
# images), or `images.sh local BINARIES` without any registry: every stage after the compiler's, on a base
# made of this machine's own C library, with the programs of a folder; the images are then run, and one
# guided text goes through both.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-cpu}
version=$(sed -n '/workspace.package/,/^version/s/^version = "\(.*\)"/\1/p' Cargo.toml)
commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
labels=(--build-arg "VERSION=$version" --build-arg "COMMIT=$commit")

if [ "$kind" != local ]; then
    case $kind in
        cpu) file=deploy/Dockerfile tag=$version ;;
        cuda) file=deploy/Dockerfile.cuda tag=$version-cuda ;;
        *) echo "images.sh [cpu|cuda|local BINARIES]" >&2; exit 64 ;;
    esac
    if docker info >/dev/null 2>&1; then builder=(docker build); else builder=(buildah build --layers); fi
    for target in generator reward; do
        "${builder[@]}" --file "$file" --target "$target" "${labels[@]}" --tag "attune/$target:$tag" .
    done
    exit 0
fi

bin=$(cd "${2:-target/debug}" && pwd)
work=$(mktemp -d)
export BUILDAH_ISOLATION=chroot
store=(--root "$work/store" --runroot "$work/run" --storage-driver vfs)
source scripts/pair.sh
end() {
    stop_pair
    umount "$work/generator" "$work/reward" 2>/dev/null || true
    buildah "${store[@]}" umount --all >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap end EXIT

# A base as bare as the real one: what the programs are linked with, and certificates.
mkdir -p "$work/base" "$work/programs/out"
install --strip "$bin/attune" "$bin/attune-generator" "$bin/attune-reward" "$work/programs/out"
cp /etc/ssl/certs/ca-certificates.crt "$work/programs/out"
ldd "$work"/programs/out/attune* | awk '/=> \// {print $3} /^\t\/lib/ {print $1}' | sort -u |
    while read -r library; do install -D "$library" "$work/base$library"; done
install -Dm644 /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/ca-certificates.crt"
image() {
    printf 'FROM scratch\nCOPY . /\n' | buildah "${store[@]}" build --quiet --file - --tag "$1" "$2" >/dev/null
}
image localhost/base "$work/base"
image localhost/programs "$work/programs"

for file in deploy/Dockerfile deploy/Dockerfile.cuda; do
    for target in generator reward; do
        buildah "${store[@]}" build --quiet --file "$file" --target "$target" "${labels[@]}" \
            --build-arg RUNTIME_IMAGE=localhost/base --build-arg BINARIES=localhost/programs \
            --format docker --tag "localhost/$target:${file##*/}" . >/dev/null
        said=$(buildah "${store[@]}" inspect --type image "localhost/$target:${file##*/}")
        for part in "\"org.opencontainers.image.version\": \"$version\"" \
            "\"org.opencontainers.image.revision\": \"$commit\"" \
            '"org.opencontainers.image.licenses": "Apache-2.0"' '"User": "65532:65532"' '"Healthcheck"'; do
            grep -qF "$part" <<<"$said" || { echo "images: $file, $target: no $part" >&2; exit 1; }
        done
        echo "built: $file, $target"
    done
done

# As Kubernetes runs them: another user than root, and nothing of the root file system can be written.
root() {
    local container
    container=$(buildah "${store[@]}" from "localhost/$1:Dockerfile")
    buildah "${store[@]}" mount "$container"
}
for target in generator reward; do
    place=$(root "$target")
    mkdir -p "$work/$target"
    mount --bind "$place" "$work/$target"
    mount -o remount,bind,ro "$work/$target"
done
in_reward=(env -i "$(command -v chroot)" --userspec=65532:65532 --groups= "$work/reward")
in_generator=(env -i "$(command -v chroot)" --userspec=65532:65532 --groups= "$work/generator")
start reward "${in_reward[@]}" /usr/local/bin/attune-reward --model /usr/share/attune/models/demo/persrm \
    --listen 127.0.0.1:0 --threads 1
reward=$address
start generator "${in_generator[@]}" /usr/local/bin/attune-generator \
    --model /usr/share/attune/models/demo/base --listen 127.0.0.1:0 --reward "http://$reward" --threads 1
"${in_reward[@]}" /usr/local/bin/attune health --endpoint "http://$reward" --timeout 4 >/dev/null
text=$("${in_generator[@]}" /usr/local/bin/attune generate --endpoint "http://$address" \
    --max-tokens 24 --prefer "with a funny joke" "How do I bake the bread?")
[ -n "$text" ]
echo "run: both images, as another user than root on read-only roots: \"${text:0:50}...\""
