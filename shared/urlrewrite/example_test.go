package urlrewrite_test

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

const webConfig = `<configuration>
  <system.webServer>
    <rewrite>
      <rules>
        <rule name="no PowerShell" stopProcessing="true">
          <match url=".*" />
          <conditions>
            <add input="{UrlDecode:{REQUEST_URI}}" pattern="(?=.*autodiscover)(?=.*powershell)" />
          </conditions>
          <action type="AbortRequest" />
        </rule>
      </rules>
      <outboundRules>
        <rule name="no script attributes">
          <match serverVariable="RESPONSE_Content_Security_Policy" pattern="(.*)" />
          <action type="Rewrite" value="script-src-attr 'none'" />
        </rule>
      </outboundRules>
    </rewrite>
  </system.webServer>
</configuration>`

// The rules of one file, evaluated over two requests and a response. Package iisconfig composes the rules of several files.
func ExampleMerge() {
	sections, err := urlrewrite.ParseConfig([]byte(webConfig), urlrewrite.WebConfig)
	if err != nil {
		fmt.Println(err)
		return
	}
	rules, err := urlrewrite.Merge(sections...)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, query := range []string{"Email=anna@contoso.com", "@evil.example/%50owerShell"} {
		req := &urlrewrite.Request{Method: "GET", Path: "/autodiscover/autodiscover.json", RawQuery: query}
		result, err := rules.Inbound(req, "/")
		fmt.Printf("%s: aborted %t, by %q, %v\n", query, result.Action == urlrewrite.ActionAbort, result.Rules, err)
	}
	answer := http.Header{}
	ran, err := rules.Outbound(&urlrewrite.Request{Method: "GET", Path: "/owa/"}, answer)
	fmt.Printf("%q set %q, %v\n", ran, answer.Get("Content-Security-Policy"), err)
	// Output:
	// Email=anna@contoso.com: aborted false, by [], <nil>
	// @evil.example/%50owerShell: aborted true, by ["no PowerShell"], <nil>
	// ["no script attributes"] set "script-src-attr 'none'", <nil>
}

// A configuration that IIS refuses is an error that says where and why.
func ExampleParseConfig() {
	_, err := urlrewrite.ParseConfig([]byte(`<rewrite>
  <rules>
    <rule name="R"><match url="(" /><action type="AbortRequest" /></rule>
  </rules>
</rewrite>`), urlrewrite.WebConfig)
	fmt.Println(err)
	// Output: line 3, column 20: pattern "(", character 1: ( without )
}

// A rule that looks for a text in what arrives percent-encoded can be passed by encoding a letter of it.
func ExampleWeaknesses() {
	ways, err := urlrewrite.Weaknesses([]byte(`<rule name="R" stopProcessing="true">
  <match url=".*" />
  <conditions><add input="{REQUEST_URI}" pattern=".*autodiscover\.json.*\@.*Powershell.*" /></conditions>
  <action type="AbortRequest" />
</rule>`))
	if err != nil || len(ways) == 0 {
		fmt.Println("no way past the rule is known", err)
		return
	}
	text, advice, _ := strings.Cut(ways[0].Text, ": ")
	fmt.Printf("rule %s: %s\n", ways[0].Rule, text)
	fmt.Println(advice)
	// Output:
	// rule R: the condition on {REQUEST_URI} looks for "autodiscover.json" in what the client may percent-encode
	// "%61utodiscover.json" goes past it; write {UrlDecode:{REQUEST_URI}}
}
