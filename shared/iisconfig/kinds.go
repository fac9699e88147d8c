package iisconfig

import "strings"

// kind is what the schema says of a section.
type kind struct {
	name, full    string
	path          []string
	element, key  string
	caseSensitive bool
	attrs         []string // of the section element
	parts         []string // child elements that are collections of their own
	server        bool     // it has an effect at server level only
}

var rewrite = []string{"system.webServer", "rewrite"}

// kinds of sections, by short name. Source: the URL Rewrite module's configuration schema and IIS_schema.xml.
var kinds = map[string]kind{
	"globalRules":            {path: append(rewrite[:2:2], "globalRules"), element: "rule", key: "name", server: true},
	"rules":                  {path: append(rewrite[:2:2], "rules"), element: "rule", key: "name"},
	"outboundRules":          {path: append(rewrite[:2:2], "outboundRules"), element: "rule", key: "name", attrs: []string{"rewriteBeforeCache"}, parts: []string{"preConditions", "customTags"}},
	"rewriteMaps":            {path: append(rewrite[:2:2], "rewriteMaps"), element: "rewriteMap", key: "name"},
	"providers":              {path: append(rewrite[:2:2], "providers"), element: "provider", key: "name"},
	"allowedServerVariables": {path: append(rewrite[:2:2], "allowedServerVariables"), element: "add", key: "name"},
	"modules":                {path: []string{"system.webServer", "modules"}, element: "add", key: "name", caseSensitive: true, attrs: []string{"runAllManagedModulesForAllRequests", "runManagedModulesForWebDavRequests"}},
	"globalModules":          {path: []string{"system.webServer", "globalModules"}, element: "add", key: "name"},
}

// parts are the collections inside outboundRules.
var parts = map[string]kind{
	"preConditions": {name: "preConditions", element: "preCondition", key: "name"},
	"customTags":    {name: "customTags", element: "tags", key: "name"},
}

func init() { //nolint:gochecknoinits // completes a table
	for n, k := range kinds {
		k.name, k.full = n, strings.Join(k.path, "/")
		kinds[n] = k
	}
}

// SectionNames lists the names that Place.Section knows, in the order in which people read them.
func SectionNames() []string {
	return []string{"globalRules", "rules", "outboundRules", "preConditions", "customTags", "rewriteMaps", "providers", "allowedServerVariables", "modules", "globalModules"}
}
