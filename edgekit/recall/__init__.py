"""The user's own documents: read, indexed and searched on the device."""
