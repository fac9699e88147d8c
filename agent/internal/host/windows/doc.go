// Package windows drives a real Exchange server: services through the service control manager, application pools through
// appcmd, site and directory rules by replacing web.config files, facts from the registry and file versions.
//
// What decides stands in files that compile everywhere and are tested everywhere (replace.go, services.go, pools.go,
// settled.go); what calls Windows in files named *_windows.go. Where Wine differs from Windows, the code says so;
// docs/windows-verification.md lists what was never seen on a real Windows.
package windows
