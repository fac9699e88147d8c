#!/usr/bin/env bash
# The Windows round: builds the agent that ships, its MSI (signed with a certificate made here) and the stand-ins, and plays
# the life of a server with them under Wine. As root it installs what it needs; otherwise it says what to install.
set -euo pipefail
cd "$(dirname "$0")/../.."
packages=(wine wine64 wixl msitools osslsigncode openssl)
missing=()
for tool in wine wineserver wixl msibuild osslsigncode openssl; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "missing: ${missing[*]}; install them: apt-get install --no-install-recommends ${packages[*]}"
    exit 1
  fi
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

make -s windows
GOOS=windows GOARCH=amd64 CGO_ENABLED=0 go build -trimpath -o "$work/standin.exe" ./e2e/wine/standin
openssl req -x509 -newkey rsa:2048 -nodes -subj "/CN=Stopgap test" -days 2 -addext extendedKeyUsage=codeSigning \
  -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
for version in 1.1.0 1.1.1; do
  SIGN_CERT="$work/cert.pem" SIGN_KEY="$work/key.pem" deploy/windows/msi.sh bin/stopgap-agent.exe "$version" "$work/$version.msi"
done
osslsigncode verify -CAfile "$work/cert.pem" -in "$work/1.1.0.msi" >"$work/verify.txt" 2>&1 || { cat "$work/verify.txt"; exit 1; }
grep -E 'Signature verification: ok|Number of verified signatures' "$work/verify.txt"

real=${STOPGAP_TESTDATA:-$(cd .. && pwd)/shared/data}
[ -d "$real" ] && export STOPGAP_TESTDATA=$real || unset STOPGAP_TESTDATA
export STOPGAP_WINE_MSI="$work/1.1.0.msi" STOPGAP_WINE_MSI_NEXT="$work/1.1.1.msi" STOPGAP_WINE_STANDIN="$work/standin.exe"
# The time only ends what hangs: every wait has a deadline of its own (e2e/patience).
CGO_ENABLED=0 go test -tags wine -count=1 -timeout 60m ${TESTFLAGS:--v} ./e2e/wine
