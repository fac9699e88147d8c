package iisconfig

import (
	"fmt"
	"testing"
)

func TestADirectoryBelongsToTheApplicationWhoseRootIsNearest(t *testing.T) {
	t.Parallel()
	s, err := Parse([]byte(`<configuration><system.applicationHost><sites><site name="S" id="1">
<application path="/"><virtualDirectory path="/" physicalPath="%SystemDrive%\inetpub\wwwroot" /></application>
<application path="/a"><virtualDirectory path="/" physicalPath="C:\inetpub\wwwroot\a\" /></application>
</site></sites></system.applicationHost></configuration>`), "x")
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{`C:\inetpub\wwwroot\x\y`, `C:\inetpub\wwwroot\x`, `c:\INETPUB\wwwroot\a`, `C:\inetpub\wwwroot\a\deep`, `C:\inetpub\wwwroot\ab`}
	root, a := s.Sites[0].App("/"), s.Sites[0].App("/a")
	if got := fmt.Sprint(s.Nested(root, dirs)); got != `[[C:\inetpub\wwwroot\x C:\inetpub\wwwroot\x\y] [C:\inetpub\wwwroot\x] [C:\inetpub\wwwroot\ab]]` {
		t.Errorf("root: %s", got)
	}
	if got := fmt.Sprint(s.Nested(a, []string{dirs[2], dirs[3]})); got != `[[C:\inetpub\wwwroot\a\deep]]` {
		t.Errorf("a: %s", got)
	}
}
