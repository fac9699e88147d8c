package urlrewrite

// Compiles says why a pattern does not compile in the dialect of URL Rewrite (ECMAScript 3); nil when it does. Unlike CheckPattern
// it says nothing about how long a match can take. IIS answers 500 to every request of a path that has an enabled rule with
// such a pattern (microsoft/CSS-Exchange 1343 and 1940, tested by Microsoft).
func Compiles(pattern string) error { return checkPattern(pattern, false) }
