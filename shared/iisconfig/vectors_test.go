package iisconfig_test

import "testing"

const (
	malformed = "!0x8007000d"
	duplicate = "!0x800700b7"
	locked    = "!0x80070021"
)

type files = map[string]string

// TestTheModelComposesAsTheFactsSay has an expectation for each rule of "How IIS composes its configuration", written from the
// text and not from the code's answers. The comment in front of each group names the sources.
func TestTheModelComposesAsTheFactsSay(t *testing.T) {
	for _, x := range []struct {
		name string
		w    world
		want map[string]string
	}{
		// Order. Source: Get-URLRewriteRule.ps1; "Deep Dive into IIS Configuration".
		{"server, path-less location, site, application, in this order", world{files: files{
			"apphost": "rules +G\n@S/owa rules +HA\n@S rules +HS", "W": "@owa rules +L\nrules +A", "O": "rules +B"}},
			map[string]string{"/": "G HS A", "/owa": "G HS A HA L B", "/ecp": "G HS A"}},
		{"a location without path, one with a dot and one with an empty path mean the file's own level", world{files: files{
			"apphost": "@. rules +G", "W": "@~ rules +A", "O": "@.[allowOverride=true] rules +B"}}, map[string]string{"/owa": "G A B", "/": "G A"}},
		{"locations of two web.config files above: the outermost comes first", world{files: files{
			"W": "@owa/auth rules +LW", "O": "@auth rules +LO", "O/auth": "rules +D"}},
			map[string]string{"/owa/auth": "LW LO D", "/owa": "", "/owa/auth/x": "LW LO D"}},
		{"a level need not exist on disk", world{files: files{"apphost": "@S/no/such rules +H", "W": "@no rules +L"}},
			map[string]string{"/no/such/thing": "L H", "/no": "L"}},
		{"a broken level breaks what is below it, and nothing above or beside it", world{files: files{
			"W": "rules +A", "O/auth": "<configuration>", "O": "rules +B"}},
			map[string]string{"/owa": "A B", "/owa/auth": malformed, "/owa/auth/15": malformed, "/owa/other": "A B"}},
		{"a file that can't be parsed breaks every section", world{files: files{"E": "<configuration>"}},
			map[string]string{"/ecp modules": malformed, "/ecp outboundRules": malformed, "/ecp preConditions": malformed}},

		// <location>. Source: "Deep Dive", "How to Use Locking".
		{"a path with a slash at an end matches nothing", world{files: files{"W": "@owa/ rules +L", "apphost": "@S/ rules +H"}},
			map[string]string{"/owa": "", "/": ""}},
		{"allowLocation=false forbids every location", world{declare: map[string]string{"rules": `allowLocation="false"`},
			files: files{"apphost": "@S/owa rules +H", "W": "rules +A"}}, map[string]string{"/owa": "!", "/": "A"}},
		{"a section outside and in a location without path is refused", world{files: files{"W": "rules +A\n@~ rules +B"}},
			map[string]string{"/": duplicate, "/owa": duplicate}},
		{"inheritInChildApplications makes no exception, the other way round neither", world{files: files{
			"W": "rules +A\n@.[inheritInChildApplications=false] rules +B"}}, map[string]string{"/": duplicate}},
		{"groups may repeat, sections are compared singly", world{files: files{"W": "rules +A\noutboundRules +O\n@owa rules +B\n@owa outboundRules +P"}},
			map[string]string{"/owa": "A B", "/owa outboundRules": "O P"}},

		// inheritInChildApplications. Source: SectionInformation.InheritInChildApplications; System.Configuration of .NET.
		{"not inherited by an application two levels below", world{files: files{"W": "@.[inheritInChildApplications=false] rules +A"}},
			map[string]string{"/owa/Calendar": "", "/owa/auth": "", "/pub": "A"}},
		{"the letter case of the request's path makes no difference to what an application keeps of its own", world{files: files{
			"O": "@.[inheritInChildApplications=false] rules +B"}}, map[string]string{"/OWA": "B", "/OWA/auth": "B"}},
		{"in applicationHost.config it counts the same", world{files: files{
			"apphost": "@S[inheritInChildApplications=false] rules +H\n@S/owa[inheritInChildApplications=false] rules +HO"}},
			map[string]string{"/": "H", "/pub": "H", "/owa": "HO", "/owa/auth": "HO", "/owa/Calendar": "", "/ecp": ""}},
		{"locks of a location that is not inherited are not inherited either", world{files: files{
			"W": "@.[inheritInChildApplications=false;overrideMode=Deny] rules +A", "O": "rules +B", "W/pub": "rules +D"}},
			map[string]string{"/owa": "B", "/pub": locked}},
		{"a name that is not inherited is free below", world{files: files{"W": "@.[inheritInChildApplications=false] rules +A", "O": "rules +A"}},
			map[string]string{"/owa": "A"}},

		// Locks on sections. Source: "How to Use Locking in IIS 7.0 Configuration", support article 942055.
		{"Inherit takes the declaration's mode", world{declare: map[string]string{"rules": `overrideModeDefault="Deny"`},
			files: files{"apphost": "@S[overrideMode=Inherit] rules", "W": "rules +A"}}, map[string]string{"/": locked}},
		{"Allow for the server unlocks everything", world{declare: map[string]string{"rules": `overrideModeDefault="Deny"`},
			files: files{"apphost": "@~[overrideMode=Allow] rules", "W": "rules +A", "O": "rules +B"}}, map[string]string{"/owa": "A B"}},
		{"a deeper location of the same file may unlock again", world{files: files{
			"apphost": "@S[overrideMode=Deny] rules\n@S/owa[overrideMode=Allow] rules", "O": "rules +B", "E": "rules +C"}},
			map[string]string{"/owa": "B", "/ecp": locked}},
		{"the file that locks may still use the section itself", world{files: files{
			"W": "@.[overrideMode=Deny] rules +A\n@owa rules +L", "O": "outboundRules +X"}}, map[string]string{"/owa": "A L", "/owa outboundRules": "X"}},
		{"a child's Allow does not lift a parent's Deny", world{files: files{
			"apphost": "@S[overrideMode=Deny] rules", "W": "@.[overrideMode=Allow] rules +A"}}, map[string]string{"/": locked}},
		{"a lock on one section leaves the others alone", world{files: files{"apphost": "@S[overrideMode=Deny] rules", "W": "outboundRules +X"}},
			map[string]string{"/ outboundRules": "X", "/": ""}},
		{"a location of a web.config above is a file of a lower level too", world{files: files{"apphost": "@S/owa[overrideMode=Deny] rules",
			"W": "@owa rules +L"}}, map[string]string{"/owa": locked, "/": ""}},
		{"both attributes on one location: the file is invalid", world{files: files{"W": "@owa[overrideMode=Allow;allowOverride=true] rules +A"}},
			map[string]string{"/": malformed, "/ecp": malformed}},
		{"MachineToApplication: the root of an application, not a plain directory", world{files: files{"E": "modules +M", "O/auth": "modules +N"}},
			map[string]string{"/ecp modules": "RewriteModule M", "/owa/auth modules": locked, "/owa modules": "RewriteModule"}},
		{"MachineOnly and AppHostOnly: no web.config, and no location of one", world{declare: map[string]string{"rules": `allowDefinition="MachineOnly"`},
			files: files{"apphost": "@S rules +H", "W": "@owa rules +L", "E": "globalRules +G"}},
			map[string]string{"/": "H", "/owa": locked, "/ecp globalRules": locked}},

		// Locks inside a section. Source: "How to Use Locking", "More config locking" (andrewbi).
		{"lockItem on a section locks it for the files below", world{files: files{"W": "rules{lockItem=true} +A\n@owa rules +L", "O": "rules +B", "E": "outboundRules +X"}},
			map[string]string{"/": "A", "/owa": locked, "/ecp outboundRules": "X"}},
		{"lockElements star locks every child", world{files: files{"W": "rules{lockElements=*} +A", "O": "rules +B", "E": "rules"}},
			map[string]string{"/owa": locked, "/ecp": "A"}},
		{"lockElements names a child element of a section", world{files: files{"W": "outboundRules{lockElements=preConditions} +A", "O": "outboundRules pre:+P",
			"E": "outboundRules +B"}}, map[string]string{"/owa outboundRules": locked, "/ecp outboundRules": "A B"}},
		{"lockAttributes star locks every attribute", world{files: files{"W": "outboundRules{lockAttributes=*} +A", "O": "outboundRules{rewriteBeforeCache=true}",
			"E": "outboundRules +B"}}, map[string]string{"/owa outboundRules": locked, "/ecp outboundRules": "A B"}},
		{"lockAllAttributesExcept leaves the named one free", world{files: files{"W": "outboundRules{lockAllAttributesExcept=rewriteBeforeCache} +A",
			"O": "outboundRules{rewriteBeforeCache=true} +B"}}, map[string]string{"/owa outboundRules": "A B"}},
		{"lockAttributes with a name that the schema lacks is itself an error", world{files: files{"W": "rules{lockAttributes=nonsense} +A"}},
			map[string]string{"/": malformed}},
		{"on an element of a collection the list attributes do nothing", world{files: files{"W": "rules +A{lockAttributes=enabled;lockElements=match}", "O": "rules -A +B"}},
			map[string]string{"/owa": "B"}},
		{"locks add up on the way down", world{files: files{"apphost": "rules{lockElements=clear} +G", "W": "rules{lockElements=remove} +A", "O": "rules clear", "E": "rules -A",
			"E/x": "rules +X"}}, map[string]string{"/owa": locked, "/ecp": locked}},
		{"a locked item may stay while others go", world{files: files{"W": "rules +A{lockItem=true} +B", "O": "rules -B +C", "E": "rules clear"}},
			map[string]string{"/owa": "A C", "/ecp": locked}},
		{"lockItem on RewriteModule forbids removing it", world{files: files{"apphost": "@S modules -RewriteModule +RewriteModule{lockItem=true}", "E": "modules -RewriteModule"}},
			map[string]string{"/ecp modules": locked, "/owa modules": "RewriteModule"}},

		// Collections. Source: IIS_schema.xml, rewrite_schema.xml; support article 942055.
		{"clear behind an add drops that add too", world{files: files{"W": "rules +A clear"}}, map[string]string{"/": ""}},
		{"remove and add again moves to the end and is no duplicate", world{files: files{"W": "rules +A +B -A +A"}}, map[string]string{"/": "B A"}},
		{"remove without a name is refused", world{files: files{"W": `<configuration><system.webServer><rewrite><rules><remove/></rules></rewrite></system.webServer></configuration>`}},
			map[string]string{"/": malformed}},
		{"a rule without a name is refused", world{files: files{"W": `<configuration><system.webServer><rewrite><rules><rule/></rules></rewrite></system.webServer></configuration>`}},
			map[string]string{"/": malformed}},
		{"a disabled rule holds its name", world{files: files{"W": "rules +A{enabled=false}", "O": "rules +A", "E": "rules -A +A"}},
			map[string]string{"/owa": duplicate, "/ecp": "A"}},
		{"names of modules are compared with case", world{files: files{"E": "modules -rewritemodule", "O": "modules +rewriteModule"}},
			map[string]string{"/ecp modules": "RewriteModule", "/owa modules": "RewriteModule rewriteModule"}},
		{"preconditions and rules are apart: clear of one leaves the other", world{files: files{"W": "outboundRules +R pre:+P", "O": "outboundRules pre:clear", "E": "outboundRules pre:-p"}},
			map[string]string{"/owa outboundRules": "R", "/owa preConditions": "", "/ecp preConditions": "", "/ecp outboundRules": "R"}},
		{"a precondition's name twice makes the whole section unreadable", world{files: files{"W": "outboundRules +R pre:+P", "O": "outboundRules pre:+p"}},
			map[string]string{"/owa outboundRules": duplicate, "/owa preConditions": duplicate, "/owa": ""}},
		{"providers and variables have names without case", world{files: files{"W": "providers +D", "O": "providers +d", "apphost": "allowedServerVariables +V\n@S allowedServerVariables +v"}},
			map[string]string{"/owa providers": duplicate, "/ecp providers": "D", "/ allowedServerVariables": duplicate}},

		// The rewrite sections. Source: "URL Rewrite Module Configuration Reference".
		{"global rules in a location for a site have no effect", world{files: files{"apphost": "globalRules +G\n@S globalRules +H\n@S/owa globalRules +G"}},
			map[string]string{"/ globalRules": "G", "/owa globalRules": "G"}},
		{"global rules in the path-less location of applicationHost.config count", world{files: files{"apphost": "@~ globalRules +G"}},
			map[string]string{"/ globalRules": "G"}},
		{"variables may be set below where they are unlocked", world{files: files{"apphost": "@S/owa[overrideMode=Allow] allowedServerVariables +A", "O": "allowedServerVariables +B", "E": "allowedServerVariables +C"}},
			map[string]string{"/owa allowedServerVariables": "A B", "/ecp allowedServerVariables": locked}},
		{"outbound rules may be at the server", world{files: files{"apphost": "outboundRules +X"}}, map[string]string{"/owa outboundRules": "X"}},
		{"clear in rules leaves maps, providers and global rules alone", world{files: files{"apphost": "globalRules +G", "W": "rules +A\nrewriteMaps +M\nproviders +D", "O": "rules clear"}},
			map[string]string{"/owa": "", "/owa rewriteMaps": "M", "/owa providers": "D", "/owa globalRules": "G"}},

		// configSource. Source: ruslany.net 2010; JexusManager; dotnet/aspnetcore 4151.
		{"a file of a directory below", world{files: files{"W": `rules{configSource=sub\r.config}`, "W/sub/r.config": `<rules><clear/><rule name="A"/></rules>`, "apphost": "rules +G"}},
			map[string]string{"/": "A"}},
		{"not a file of another directory", world{files: files{"W": `rules{configSource=..\r.config}`}}, map[string]string{"/": "!"}},
		{"not an absolute path", world{files: files{"W": `rules{configSource=C:\r.config}`}}, map[string]string{"/": "!"}},
		{"nothing else on the element", world{files: files{"W": "outboundRules{configSource=r.config;rewriteBeforeCache=true}", "W/r.config": "<outboundRules/>"}},
			map[string]string{"/ outboundRules": "!"}},
		{"no children beside it", world{files: files{"W": "rules{configSource=r.config} +A", "W/r.config": "<rules/>"}}, map[string]string{"/": "!"}},
		{"another root element", world{files: files{"W": "rules{configSource=r.config}", "W/r.config": "<configuration/>"}}, map[string]string{"/": "!"}},
		{"a malformed file", world{files: files{"W": "rules{configSource=r.config}", "W/r.config": "<rules>"}}, map[string]string{"/": malformed, "/ outboundRules": ""}},
		{"the other file is under the size limit too", world{files: files{"W": "rules{configSource=r.config}", "W/r.config": "<rules>" + blanks(256_000) + "</rules>"}},
			map[string]string{"/": "!"}},

		// Files, directories, pools. Source: support article 942055; "Web.config file maximum size and count".
		{"256,000 bytes are read, one more is not", world{files: files{"O": sized(256_000), "E": sized(256_001)}}, map[string]string{"/owa": "", "/ecp": "!"}},
		{"a wrong root element", world{files: files{"W": "<web/>"}}, map[string]string{"/": malformed}},
		{"a byte order mark does no harm", world{files: files{"W": "<configuration/>", "O": "\ufeff<configuration/>"}}, map[string]string{"/owa": ""}},
		{"a section declared a second time", world{files: files{"W": `<configuration><configSections><sectionGroup name="system.webServer"><sectionGroup name="rewrite"><section name="rules"/></sectionGroup></sectionGroup></configSections></configuration>`}},
			map[string]string{"/": "!", "/owa": "!"}},
		{"a section of its own may be declared", world{files: files{"W": `<configuration><configSections><sectionGroup name="mine"><section name="x"/></sectionGroup></configSections></configuration>`, "O": "rules +B"}},
			map[string]string{"/owa": "B"}},
		{"inherited declarations may not be removed", world{files: files{"W": `<configuration><configSections><sectionGroup name="system.webServer"><remove name="rewrite"/></sectionGroup></configSections></configuration>`}},
			map[string]string{"/": "!"}},
		{"configSections is the first child", world{files: files{"W": `<configuration><system.webServer/><configSections/></configuration>`}}, map[string]string{"/": malformed}},
		{"configSections stands once", world{files: files{"W": `<configuration><configSections/><configSections/></configuration>`}}, map[string]string{"/": "!"}},
		{"a section that is encrypted as a whole is refused", world{files: files{"W": `<configuration><system.webServer><rewrite><rules configProtectionProvider="RsaProtectedConfigurationProvider"><EncryptedData/></rules></rewrite></system.webServer></configuration>`}},
			map[string]string{"/": "!", "/ outboundRules": ""}},
		{"an unknown element in a collection", world{files: files{"W": `<configuration><system.webServer><rewrite><rules><rool name="A"/></rules></rewrite></system.webServer></configuration>`}},
			map[string]string{"/": malformed}},
		{"a section that is not registered, although others are", world{declare: map[string]string{"providers": "-"}, files: files{"W": "providers +D", "O": "rules +B"}},
			map[string]string{"/": malformed, "/owa": malformed}},
		{"the pool ignores web.config: only applicationHost.config counts", world{pool: ` enableConfigurationOverride="false"`, files: files{
			"apphost": "rules +G\n@S/owa rules +H\n@S/ecp rules +I", "W": "rules +A\n@ecp rules +L", "O": "<malformed", "E": "rules +C"}},
			map[string]string{"/": "G", "/owa": "G H", "/ecp": "G A I L C"}},
		{"allowSubDirConfig comes from the nearest defaults", world{more: "", apps: `<virtualDirectoryDefaults allowSubDirConfig="false"/>` +
			`<application path="/"><virtualDirectory path="/" physicalPath="C:\inetpub\wwwroot"/><virtualDirectory path="/x" physicalPath="D:\extra" allowSubDirConfig="true"/></application>`,
			files: files{"W": "rules +A", "W/pub": "rules +P", "X": "rules +V", "X/pub": "rules +Q"}}, map[string]string{"/pub": "A", "/x/pub": "A V Q"}},
		{"a virtual directory of an application on the application's own directory", world{apps: `<application path="/"><virtualDirectory path="/" physicalPath="C:\inetpub\wwwroot"/><virtualDirectory path="/l" physicalPath="C:\INETPUB\wwwroot\"/></application>`,
			files: files{"W": "rules clear +A"}}, map[string]string{"/l": "A", "/": "A"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			x.w.ask(t, x.want)
		})
	}
}

func blanks(n int) string { return string(bytesOf(n)) }

func bytesOf(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = ' '
	}
	return b
}

// sized is a web.config of a number of bytes.
func sized(n int) string {
	const empty = "<configuration></configuration>"
	return "<configuration>" + blanks(n-len(empty)) + "</configuration>"
}

// TestNestedKeysAreUnique: conditions of global rules, outbound rules and preconditions, server variables, map entries, tags and
// settings have keys; conditions of distributed rules have none. Source: rewrite_schema.xml.
func TestNestedKeysAreUnique(t *testing.T) {
	two := func(s string) string { return s + s }
	condition := `<add input="{A}" pattern="x"/>`
	same := `<add input="{a}" matchType="Pattern" pattern="X" ignoreCase="true" negate="false"/>` // the defaults written out, another case
	for _, x := range []struct{ name, section, inner, want string }{
		{"equal conditions of a distributed rule may repeat", "rules", `<rule name="A"><conditions>` + two(condition) + `</conditions></rule>`, "A"},
		{"equal conditions of an outbound rule", "outboundRules", `<rule name="A"><conditions>` + condition + same + `</conditions></rule>`, duplicate},
		{"conditions that differ in one key attribute", "outboundRules", `<rule name="A"><conditions>` + condition + `<add input="{A}" pattern="x" negate="true"/></conditions></rule>`, "A"},
		{"equal checks of a precondition", "outboundRules", `<preConditions><preCondition name="P">` + two(condition) + `</preCondition></preConditions>`, duplicate},
		{"a server variable set twice", "rules", `<rule name="A"><serverVariables><set name="HTTP_X" value="1"/><set name="http_x" value="2"/></serverVariables></rule>`, duplicate},
		{"a map's key twice", "rewriteMaps", `<rewriteMap name="A">` + two(`<add key="k" value="v"/>`) + `</rewriteMap>`, duplicate},
		{"keys of a map are compared with case", "rewriteMaps", `<rewriteMap name="A"><add key="k" value="v"/><add key="K" value="v"/></rewriteMap>`, "A"},
		{"a map's key after clear and after remove", "rewriteMaps", `<rewriteMap name="A"><add key="k"/><clear/><add key="k"/><remove key="k"/><add key="k"/></rewriteMap>`, "A"},
		{"an entry without key", "rewriteMaps", `<rewriteMap name="A"><add value="v"/></rewriteMap>`, malformed},
		{"a provider's setting twice", "providers", `<provider name="A" type="T"><settings>` + two(`<add key="k" value="v"/>`) + `</settings></provider>`, duplicate},
		{"a tag twice", "outboundRules", `<customTags><tags name="T">` + two(`<tag name="a" attribute="b"/>`) + `</tags></customTags>`, duplicate},
		{"a tag with another attribute", "outboundRules", `<customTags><tags name="T"><tag name="a" attribute="b"/><tag name="a" attribute="c"/></tags></customTags>`, ""},
		{"a truth value that is none", "rules", `<rule name="A" enabled="maybe"/>`, malformed},
		{"an enumeration's value that does not exist", "rules", `<rule name="A"><action type="Explode"/></rule>`, malformed},
		{"a newer attribute is stepped over", "rules", `<rule name="A" responseCacheDirective="Never" someday="x"/>`, "A"},
		{"an empty map may be there", "rewriteMaps", `<rewriteMap name="A"/>`, "A"},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			w := world{files: files{"W": "<configuration><system.webServer><rewrite><" + x.section + ">" + x.inner + "</" + x.section + "></rewrite></system.webServer></configuration>"}}
			w.ask(t, map[string]string{"/owa " + x.section: x.want})
		})
	}
	w := world{files: files{"apphost": `@S outboundRules`}}
	w.files["apphost"] = world{}.appHost()
	w.files["apphost"] = w.files["apphost"][:len(w.files["apphost"])-len("</configuration>")] +
		`<system.webServer><rewrite><globalRules><rule name="G"><conditions>` + two(condition) + `</conditions></rule></globalRules></rewrite></system.webServer></configuration>`
	w.ask(t, map[string]string{"/ globalRules": duplicate})
}
