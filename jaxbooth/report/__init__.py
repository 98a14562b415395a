"""What a person looks at: pictures and pages, made from files alone."""
