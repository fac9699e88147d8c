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
# wixl schedules the removal of the old version where Windows Installer forbids it (ICE63): right after InstallInitialize it is rolled back
# with the rest. And a rebuilt MSI of the same version replaces the installed one (512: the highest version counts too).
msibuild "$work/agent.msi" -q "UPDATE InstallExecuteSequence SET Sequence = 1501 WHERE Action = 'RemoveExistingProducts'"
upgrade=$(sed -n 's/.*UpgradeCode="\([^"]*\)".*/\1/p' "$here/stopgap-agent.wxs")
msibuild "$work/agent.msi" -q "DELETE FROM Upgrade WHERE ActionProperty = 'WIX_UPGRADE_DETECTED'" # Attributes are part of the key
msibuild "$work/agent.msi" -q "INSERT INTO Upgrade (UpgradeCode, VersionMax, Attributes, ActionProperty) VALUES ('{$upgrade}', '$version', 513, 'WIX_UPGRADE_DETECTED')"
has() { msiinfo export "$work/agent.msi" "$1" | tr -d '\r' | grep -qE "$2" || { echo "$3"; exit 1; }; }
has InstallExecuteSequence '^InstallInitialize	.*1500$' "InstallInitialize is not at 1500"
has InstallExecuteSequence '^RemoveExistingProducts	.*1501$' "RemoveExistingProducts is not right after InstallInitialize"
has Upgrade '	513	.*WIX_UPGRADE_DETECTED' "an MSI of the same version would be installed beside"
# 3090 is what wixl writes for the action; 8192 more hides its target, with the token, from verbose logs.
msibuild "$work/agent.msi" -q "UPDATE CustomAction SET Type = 11282 WHERE Action = 'Configure'"
has CustomAction '^Configure	11282	' "the token would be in verbose logs: CustomAction Configure has another type"
has Property '^MsiHiddenProperties	TOKEN' "the token would be in logs: the property TOKEN is not hidden"
sign "$work/agent.msi"
mv "$work/agent.msi" "$out"
echo "$out$([ -n "${SIGN_CERT:-}" ] && echo ', signed' || echo ', not signed: set SIGN_CERT and SIGN_KEY')"
