#!/usr/bin/env bash
# Makes the MSI of the agent: msi.sh EXE VERSION OUT. Signs program and MSI where SIGN_CERT and SIGN_KEY (PEM files) are set; with
# SIGN_TIMESTAMP=URL also timestamps. Needs wixl and msibuild (package msitools), and osslsigncode to sign.
set -euo pipefail
exe=$1 version=$2 out=$(realpath -m "$3")
here=$(cd "$(dirname "$0")" && pwd)
for tool in wixl msibuild ${SIGN_CERT:+osslsigncode}; do
  command -v "$tool" >/dev/null || { echo "no $tool: apt-get install wixl msitools osslsigncode"; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sign() { # sign FILE: in place
  [ -n "${SIGN_CERT:-}" ] || return 0
  osslsigncode sign -certs "$SIGN_CERT" -key "${SIGN_KEY:?SIGN_KEY names the key of SIGN_CERT}" -h sha256 -n "Stopgap Agent" \
    ${SIGN_TIMESTAMP:+-ts "$SIGN_TIMESTAMP"} -in "$1" -out "$work/signed" >/dev/null
  mv "$work/signed" "$1"
}

cp "$exe" "$work/stopgap-agent.exe"
sign "$work/stopgap-agent.exe"
cp "$here/stopgap-agent.wxs" "$work/" # wixl takes relative paths only
(cd "$work" && wixl -a x64 -D Version="$version" -D Exe=stopgap-agent.exe -o agent.msi stopgap-agent.wxs)
# 3090 is what wixl writes for the action; 8192 more hides its target, with the token, from verbose logs.
msibuild "$work/agent.msi" -q "UPDATE CustomAction SET Type = 11282 WHERE Action = 'Configure'"
msiinfo export "$work/agent.msi" CustomAction | grep -q '^Configure	11282	' || { echo "the token would be in verbose logs: CustomAction Configure has another type"; exit 1; }
msiinfo export "$work/agent.msi" Property | grep -q '^MsiHiddenProperties	TOKEN' || { echo "the token would be in logs: the property TOKEN is not hidden"; exit 1; }
sign "$work/agent.msi"
mv "$work/agent.msi" "$out"
echo "$out$([ -n "${SIGN_CERT:-}" ] && echo ', signed' || echo ', not signed: set SIGN_CERT and SIGN_KEY')"
