package webhook

const lineSecret = "0123456789abcdef0123456789abcdef"
