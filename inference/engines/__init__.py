"""Networks in the forms of other runtimes: written for others (`export`), or used here in place of torch (`engine`)."""
