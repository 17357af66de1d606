package webhook

const acmeSecret = "a secret of the courier, today"
