// Renders the Helm chart as `helm template` does, for machines that have no helm: Go's own templates, sprig, and the
// functions that helm adds. Only what charts of one level use: no subcharts, no hooks, no look-ups in a cluster.
//
//	render CHART RELEASE NAMESPACE [KEY.PATH=YAML]...
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v2"
)

type object = map[string]interface{}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}

// Helm's values have string keys all the way down.
func plain(value interface{}) interface{} {
	switch v := value.(type) {
	case map[interface{}]interface{}:
		out := object{}
		for key, item := range v {
			out[fmt.Sprint(key)] = plain(item)
		}
		return out
	case []interface{}:
		for i := range v {
			v[i] = plain(v[i])
		}
	}
	return value
}

func parse(text []byte) interface{} {
	var value interface{}
	check(yaml.Unmarshal(text, &value))
	return plain(value)
}

func toYaml(value interface{}) string {
	text, err := yaml.Marshal(value)
	check(err)
	return strings.TrimSuffix(string(text), "\n")
}

type files struct{ dir string }

func (f files) Get(name string) string {
	text, err := os.ReadFile(filepath.Join(f.dir, name))
	check(err)
	return string(text)
}

// Refuses what the chart does not know: a value with a typing error would be without effect.
func set(values object, words string) {
	path, text, ok := strings.Cut(words, "=")
	if !ok {
		check(fmt.Errorf("%q is not KEY=VALUE", words))
	}
	keys := strings.Split(path, ".")
	for _, key := range keys[:len(keys)-1] {
		inner, ok := values[key].(object)
		if !ok {
			check(fmt.Errorf("the chart has no values at %s", path))
		}
		values = inner
	}
	last := keys[len(keys)-1]
	if _, ok := values[last]; !ok {
		check(fmt.Errorf("the chart has no value %s", path))
	}
	values[last] = merge(values[last], parse([]byte(text)))
}

// As helm lays values over the chart's own: maps key by key, all else as a whole.
func merge(under, over interface{}) interface{} {
	below, ok := under.(object)
	above, both := over.(object)
	if !ok || !both {
		return over
	}
	for key, value := range above {
		below[key] = merge(below[key], value)
	}
	return below
}

// The order in which helm makes objects, as far as charts here have them: what a pod needs is there before it. Kinds that
// helm does not know come last.
var order = []string{"PriorityClass", "Namespace", "NetworkPolicy", "ServiceAccount", "Secret", "ConfigMap", "ClusterRole",
	"ClusterRoleBinding", "Role", "RoleBinding", "Service", "DaemonSet", "Deployment"}

func place(document string) int {
	for i, kind := range order {
		if strings.Contains("\n"+document, "\nkind: "+kind+"\n") {
			return i
		}
	}
	return len(order)
}

func main() {
	if len(os.Args) < 4 {
		check(fmt.Errorf("usage: render CHART RELEASE NAMESPACE [KEY.PATH=YAML]..."))
	}
	chart, release, namespace := os.Args[1], os.Args[2], os.Args[3]
	read := func(name string) object {
		text, err := os.ReadFile(filepath.Join(chart, name))
		check(err)
		return parse(text).(object)
	}
	about, values := read("Chart.yaml"), read("values.yaml")
	for _, words := range os.Args[4:] {
		set(values, words)
	}
	all := template.New("chart").Option("missingkey=zero")
	funcs := sprig.TxtFuncMap()
	// As helm: a chart does not see who renders it.
	delete(funcs, "env")
	delete(funcs, "expandenv")
	include := func(name string, data interface{}) (string, error) {
		var out bytes.Buffer
		err := all.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	funcs["include"] = include
	funcs["toYaml"] = toYaml
	funcs["toJson"] = func(value interface{}) (string, error) { text, err := json.Marshal(value); return string(text), err }
	funcs["required"] = func(why string, value interface{}) (interface{}, error) {
		if value == nil || value == "" {
			return value, fmt.Errorf("%s", why)
		}
		return value, nil
	}
	all.Funcs(funcs)
	names, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	check(err)
	sort.Strings(names)
	for _, name := range names {
		text, err := os.ReadFile(name)
		check(err)
		_, err = all.New(filepath.Base(name)).Parse(string(text))
		check(err)
	}
	data := object{
		"Values":  values,
		"Files":   files{chart},
		"Chart":   object{"Name": about["name"], "Version": about["version"], "AppVersion": about["appVersion"]},
		"Release": object{"Name": release, "Namespace": namespace, "Service": "Helm"},
	}
	var documents []string
	for _, name := range names {
		base := filepath.Base(name)
		if !strings.HasSuffix(base, ".yaml") {
			continue
		}
		text, err := include(base, data)
		check(err)
		for _, document := range strings.Split("\n"+text, "\n---\n") {
			if document = strings.TrimSpace(document); document != "" {
				documents = append(documents, fmt.Sprintf("# templates/%s\n%s\n", base, document))
			}
		}
	}
	sort.SliceStable(documents, func(a, b int) bool { return place(documents[a]) < place(documents[b]) })
	for _, document := range documents {
		fmt.Printf("---\n%s", document)
	}
}
