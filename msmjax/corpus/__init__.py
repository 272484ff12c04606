"""From a Spec to documents and conversations: the embedded microworld today, teacher-written corpora beside it."""
