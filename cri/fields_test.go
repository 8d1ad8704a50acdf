package cri

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fieldNotes has a line for each field, MESSAGE.FIELD | VERDICT | WHAT | TESTS;
// FIELD is * for a whole message of another system.
const fieldNotes = "testdata/fields.txt"

// fieldTable is made from it.
const fieldTable = "FIELDS.md"

// verdicts are what can become of a field.
var verdicts = []string{"honoured", "refused", "no meaning"}

type fieldNote struct{ verdict, what, tests string }

// TestEveryFieldIsInTheTable: a field that the interface gains has no line, and
// fails here until somebody has decided what becomes of it.
func TestEveryFieldIsInTheTable(t *testing.T) {
	notes := readFieldNotes(t)
	var table bytes.Buffer
	table.WriteString(fieldTableHead)
	used := map[string]bool{}
	for _, m := range configMessages() {
		fmt.Fprintf(&table, "\n## %s\n\n| field | what becomes of it | how | shown by |\n|---|---|---|---|\n", m.Name())
		if whole := string(m.Name()) + ".*"; notes[whole] != (fieldNote{}) {
			used[whole] = true
			writeField(t, &table, "all", "", notes[whole])
			continue
		}
		for i := range m.Fields().Len() {
			field := m.Fields().Get(i)
			name := string(m.Name()) + "." + string(field.Name())
			note, ok := notes[name]
			if !ok {
				t.Errorf("%s has no line in %s", name, fieldNotes)
				continue
			}
			used[name] = true
			writeField(t, &table, string(field.Name()), field.JSONName(), note)
		}
	}
	for name := range notes {
		if !used[name] {
			t.Errorf("%s: %s is not a field of the interface", fieldNotes, name)
		}
	}
	if *update {
		if err := os.WriteFile(fieldTable, table.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(fieldTable); err != nil || !bytes.Equal(have, table.Bytes()) {
		t.Errorf("%s is not what the fields and %s make: run go test ./cri -run EveryField -update (%v)", fieldTable, fieldNotes, err)
	}
}

const fieldTableHead = `# What becomes of each field

Of what a client can say of a pod and of a container (` + "`PodSandboxConfig`, `ContainerConfig`" + `, and all messages that they
lead to), each field is honoured, or refused by name, or has no meaning on Linux. This page is made by
` + "`go test ./cri -run EveryField -update`" + ` from the interface's own descriptors and ` + "`testdata/fields.txt`" + `; the test
fails if a field has no line, or if what is named does not show it.

Tests: ` + "`NAME.txt`" + ` is a script in ` + "`test/e2e/testdata`, `NAME.json`" + ` a case in ` + "`cri/testdata`" + `, and a name of Go's is a unit.
`

// configMessages gives the messages that a pod's and a container's
// configuration lead to, in the order in which they are met.
func configMessages() []protoreflect.MessageDescriptor {
	queue := []protoreflect.MessageDescriptor{(&runtimeapi.PodSandboxConfig{}).ProtoReflect().Descriptor(),
		(&runtimeapi.ContainerConfig{}).ProtoReflect().Descriptor()}
	var all []protoreflect.MessageDescriptor
	for len(queue) > 0 {
		m := queue[0]
		queue = queue[1:]
		if m.IsMapEntry() || slices.Contains(all, m) {
			continue
		}
		all = append(all, m)
		for i := range m.Fields().Len() {
			if to := m.Fields().Get(i).Message(); to != nil {
				queue = append(queue, to)
			}
		}
	}
	return all
}

func readFieldNotes(t *testing.T) map[string]fieldNote {
	t.Helper()
	data, err := os.ReadFile(fieldNotes)
	if err != nil {
		t.Fatal(err)
	}
	notes := map[string]fieldNote{}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		parts := strings.Split(line, "|")
		if len(parts) != 4 {
			t.Fatalf("%s: %q has not four parts", fieldNotes, line)
		}
		for i := range parts {
			parts[i] = strings.TrimSpace(parts[i])
		}
		if _, twice := notes[parts[0]]; twice || !slices.Contains(verdicts, parts[1]) || parts[2] == "" {
			t.Errorf("%s: %q comes twice, or says none of %q", fieldNotes, line, verdicts)
		}
		notes[parts[0]] = fieldNote{parts[1], parts[2], parts[3]}
	}
	return notes
}

// writeField writes a line of the table, after checking that each test that it
// names is there and mentions the field, or the word after the colon.
func writeField(t *testing.T, table *bytes.Buffer, name, jsonName string, note fieldNote) {
	t.Helper()
	var tests []string
	for _, test := range strings.Fields(note.tests) {
		test, word, _ := strings.Cut(test, ":")
		text, err := textOfTest(test)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if word != "" && !strings.Contains(text, word) || word == "" && !strings.Contains(text, name) && !strings.Contains(text, jsonName) {
			t.Errorf("%s: %s does not mention it", name, test)
		}
		tests = append(tests, "`"+test+"`")
	}
	if len(tests) == 0 && note.verdict != "no meaning" {
		t.Errorf("%s is %s, and no test shows it", name, note.verdict)
	}
	fmt.Fprintf(table, "| `%s` | %s | %s | %s |\n", name, note.verdict, note.what, strings.Join(tests, ", "))
}

// textOfTest gives the script, the case or the Go files that a test is in.
func textOfTest(name string) (string, error) {
	var data []byte
	var err error
	switch filepath.Ext(name) {
	case ".txt":
		data, err = os.ReadFile(filepath.Join("../test/e2e/testdata", name))
	case ".json":
		file := strings.TrimSuffix(name, ".json") + ".request.json"
		if data, err = os.ReadFile(filepath.Join("testdata/spec", file)); os.IsNotExist(err) {
			data, err = os.ReadFile(filepath.Join("testdata", file))
		}
	default:
		files, globErr := filepath.Glob("../*/*_test.go")
		if globErr != nil {
			return "", globErr
		}
		for _, file := range files {
			data, err = os.ReadFile(file)
			if err != nil || bytes.Contains(data, []byte("func "+name+"(")) {
				return string(data), err
			}
		}
		err = fmt.Errorf("no test is named %s", name)
	}
	return string(data), err
}
