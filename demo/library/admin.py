from django.contrib import admin

from library.models import Package


@admin.register(Package)
class PackageAdmin(admin.ModelAdmin):
    list_display = ["name", "version", "section", "installed_kib"]
    list_filter = ["section"]
    search_fields = ["name"]
