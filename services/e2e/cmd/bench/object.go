package main

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// rowsOf makes the rows of a format, all of one width, so that any byte of a file of
// any size follows from its position: it takes neither disk nor memory.
type rowsOf struct {
	header string
	row    string // with blanks for what differs
	number int    // where its nine digits stand
	city   int    // where five letters stand
	points int    // where five digits stand
}

var cities = []string{"Tokyo", "Osaka", "Kyoto", "Paris", "Milan", "Delhi", "Dubai", "Lagos"}

// rowsIn are the rows of a format, at least so many bytes long: the text of one column is
// as long as that takes.
func rowsIn(format string, width int) (rowsOf, error) {
	var r rowsOf
	switch format {
	case "csv":
		r.header = "id,city,plan,points,likes,since,language,visits,news\n"
		r.row = "user-#########,@@@@@,gold,%%%%%,Chocolate,2025-01-02,en-GB,9,yes\n"
	case "jsonl":
		r.row = `{"id":"user-#########","city":"@@@@@","plan":"gold","points":%%%%%,"likes":"Chocolate","since":"2025-01-02","language":"en-GB","visits":9,"news":true}` + "\n"
	default:
		return r, fmt.Errorf("no rows of format %q: csv or jsonl", format)
	}
	if short := width - len(r.row); short > 0 {
		r.row = strings.Replace(r.row, "Chocolate", "Chocolate"+strings.Repeat(" and more", short/9+1)[:short], 1)
	}
	r.number, r.city, r.points = strings.Index(r.row, "#"), strings.Index(r.row, "@"), strings.Index(r.row, "%")
	return r, nil
}

func (r rowsOf) size(rows int64) int64 { return int64(len(r.header)) + rows*int64(len(r.row)) }

// append adds row i, from 0, to p.
func (r rowsOf) append(p []byte, i int64) []byte {
	from := len(p)
	p = append(p, r.row...)
	row := p[from:]
	digits(row[r.number:r.number+9], i)
	copy(row[r.city:], cities[i%int64(len(cities))])
	digits(row[r.points:r.points+5], 10_000+i*7919%90_000) // JSON numbers do not begin with 0
	return p
}

func digits(p []byte, n int64) {
	for k := len(p) - 1; k >= 0; k-- {
		p[k] = byte('0' + n%10)
		n /= 10
	}
}

const (
	benchBucket = "hikyaku"
	objectETag  = `"made-from-row-numbers"`
)

// objects is an S3 server of objects made of rows, each called after the number of
// its rows, such as imports/1/2000000.csv. It knows lists, heads and ranges, and takes what is
// put into it without keeping it.
type objects struct {
	modified time.Time
	rows     rowsOf
	keys     func() []string  // what a list shows
	asked    func(key string) // is called when a range of it is asked for
}

func (o *objects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/"+benchBucket)
	key := strings.TrimPrefix(path, "/")
	switch {
	case r.Method == http.MethodPut:
		w.Header().Set("ETag", objectETag)
	case r.Method == http.MethodGet && key == "":
		o.list(w, r.URL.Query().Get("prefix"))
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		o.object(w, r, key)
	default:
		w.WriteHeader(http.StatusNotImplemented)
	}
}

func (o *objects) list(w http.ResponseWriter, prefix string) {
	type content struct {
		Key, ETag, LastModified string
		Size                    int64
	}
	answer := struct {
		XMLName     xml.Name `xml:"ListBucketResult"`
		Name        string
		IsTruncated bool
		Contents    []content
	}{Name: benchBucket}
	for _, key := range o.keys() {
		if strings.HasPrefix(key, prefix) {
			answer.Contents = append(answer.Contents, content{key, objectETag, o.modified.UTC().Format("2006-01-02T15:04:05.000Z"), o.rows.size(rowsNamed(key))})
		}
	}
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(answer)
}

// rowsNamed is how many rows the object has, by its name.
func rowsNamed(key string) int64 {
	name := key[strings.LastIndexByte(key, '/')+1:]
	n, _ := strconv.ParseInt(name[:strings.IndexByte(name, '.')], 10, 64)
	return n
}

func (o *objects) object(w http.ResponseWriter, r *http.Request, key string) {
	rows := rowsNamed(key)
	from, to := int64(0), o.rows.size(rows)-1
	w.Header().Set("ETag", objectETag)
	w.Header().Set("Last-Modified", o.modified.UTC().Format(http.TimeFormat))
	if part, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		if _, err := fmt.Sscanf(part, "%d-%d", &from, &to); err != nil || from > to || to >= o.rows.size(rows) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, o.rows.size(rows)))
	}
	w.Header().Set("Content-Length", strconv.FormatInt(to-from+1, 10))
	if r.Method == http.MethodHead {
		return
	}
	o.asked(key)
	if r.Header.Get("Range") != "" {
		w.WriteHeader(http.StatusPartialContent)
	}
	o.write(w, from, to+1)
}

// write writes the bytes of an object from one to before another.
func (o *objects) write(w http.ResponseWriter, from, to int64) {
	const chunk = 256 << 10
	head := int64(len(o.rows.header))
	width := int64(len(o.rows.row))
	p := make([]byte, 0, chunk+2*width)
	if from < head {
		if _, err := w.Write([]byte(o.rows.header[from:min(to, head)])); err != nil {
			return
		}
		from = head
	}
	for from < to {
		row := (from - head) / width
		begin := head + row*width
		for p = p[:0]; len(p) < chunk && begin+int64(len(p)) < to; row++ {
			p = o.rows.append(p, row)
		}
		part := p[from-begin : min(int64(len(p)), to-begin)]
		if _, err := w.Write(part); err != nil {
			return // whoever asked has gone
		}
		from += int64(len(part))
	}
}
