package event

// Record is a value of a topic.
type Record interface {
	// SchemaName is the name of the record's type: MessageRequest.
	SchemaName() string
	// Schema is the text that is registered: the newest version known here.
	Schema() string
	// AppendAvro appends the record's Avro bytes, without a header.
	AppendAvro(b []byte) []byte
	// DecodeAvro reads bytes written with Schema and overwrites every field.
	// Bytes that end early, go on too long or make no sense are an error,
	// never a panic, and cost no more memory than their length warrants.
	DecodeAvro(b []byte) error
}
